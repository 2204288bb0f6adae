"""A transcript in the formats of OpenAI's route."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vermilion.serving.audio.audio_calls import AUDIO_TOKENS_PER_S, audio_tokens
from vermilion.speech.recognizer import SAMPLE_RATE, SpokenSegment, SpokenWord, Transcript

RESPONSE_FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
_NAMED = (
    "af=afrikaans am=amharic ar=arabic as=assamese az=azerbaijani ba=bashkir be=belarusian bg=bulgarian "
    "bn=bengali bo=tibetan br=breton bs=bosnian ca=catalan cs=czech cy=welsh da=danish de=german el=greek "
    "en=english es=spanish et=estonian eu=basque fa=persian fi=finnish fo=faroese fr=french gl=galician "
    "gu=gujarati ha=hausa haw=hawaiian he=hebrew hi=hindi hr=croatian hu=hungarian hy=armenian "
    "id=indonesian is=icelandic it=italian ja=japanese jw=javanese ka=georgian kk=kazakh km=khmer "
    "kn=kannada ko=korean la=latin lb=luxembourgish ln=lingala lo=lao lt=lithuanian lv=latvian "
    "mg=malagasy mi=maori mk=macedonian ml=malayalam mn=mongolian mr=marathi ms=malay mt=maltese "
    "my=myanmar ne=nepali nl=dutch nn=nynorsk no=norwegian oc=occitan pa=punjabi pl=polish ps=pashto "
    "pt=portuguese ro=romanian ru=russian sa=sanskrit sd=sindhi si=sinhala sk=slovak sl=slovenian "
    "sn=shona so=somali sq=albanian sr=serbian su=sundanese sv=swedish sw=swahili ta=tamil te=telugu "
    "tg=tajik th=thai tk=turkmen tl=tagalog tr=turkish tt=tatar uk=ukrainian ur=urdu uz=uzbek "
    "vi=vietnamese yi=yiddish yo=yoruba yue=cantonese zh=chinese"
)
LANGUAGES = dict(pair.split("=") for pair in _NAMED.split())
"""Whisper's: its name of each, which OpenAI's replies have, by the code that is asked for."""


def num_tokens(transcript: Transcript) -> int:
    """Of the audio."""
    return audio_tokens(round(transcript.duration_s * SAMPLE_RATE), SAMPLE_RATE)


def token_usage(transcript: Transcript) -> dict[str, Any]:
    heard = num_tokens(transcript)
    return {
        "type": "tokens",
        "input_tokens": heard,
        "input_token_details": {"audio_tokens": heard, "text_tokens": 0},
        "output_tokens": 0,
        "total_tokens": heard,
    }


def dumps(transcript: Transcript) -> str:
    """For the ledger, which keeps the reply of a call that may be repeated."""
    return json.dumps(asdict(transcript), ensure_ascii=False)


def loads(kept: str) -> Transcript:
    fields = json.loads(kept)
    segments = tuple(
        SpokenSegment(words=tuple(SpokenWord(**word) for word in segment.pop("words")), **segment)
        for segment in fields.pop("segments")
    )
    return Transcript(segments=segments, **fields)


def rendered(transcript: Transcript, format: str, granularities: Sequence[str]) -> tuple[str, str]:
    """(content, media type); `granularities` are those of `verbose_json`."""
    if format == "text":
        return f"{transcript.text}\n", "text/plain; charset=utf-8"
    if format == "srt":
        return _srt(transcript.segments), "text/plain; charset=utf-8"
    if format == "vtt":
        return _vtt(transcript.segments), "text/vtt; charset=utf-8"
    body: dict[str, Any] = {"text": transcript.text, "usage": token_usage(transcript)}
    if format == "verbose_json":
        body = _verbose(transcript, granularities)
    return json.dumps(body, ensure_ascii=False), "application/json"


def _verbose(transcript: Transcript, granularities: Sequence[str]) -> dict[str, Any]:
    body: dict[str, Any] = {
        "task": "transcribe",
        "language": LANGUAGES.get(transcript.language, transcript.language),
        "duration": round(transcript.duration_s, 3),
        "text": transcript.text,
    }
    if "word" in granularities:
        body["words"] = [
            {"word": word.text, "start": round(word.start_s, 3), "end": round(word.end_s, 3)}
            for segment in transcript.segments
            for word in segment.words
        ]
    if "segment" in granularities or not granularities:
        body["segments"] = [_shown(number, segment) for number, segment in enumerate(transcript.segments)]
    # The SDK's type of this reply has the seconds alone, in tenths as the ledger counts them.
    return body | {"usage": {"type": "duration", "seconds": num_tokens(transcript) / AUDIO_TOKENS_PER_S}}


def _shown(number: int, segment: SpokenSegment) -> dict[str, Any]:
    raw = segment.text.encode()
    return {
        "id": number,
        "seek": 0,
        "start": round(segment.start_s, 3),
        "end": round(segment.end_s, 3),
        "text": segment.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": segment.avg_logprob,
        # As Whisper tells a text that repeats itself.
        "compression_ratio": len(raw) / len(zlib.compress(raw)),
        "no_speech_prob": segment.no_speech_prob,
    }


def _srt(segments: Sequence[SpokenSegment]) -> str:
    cues = (
        f"{number}\n{_clock(segment.start_s, ',')} --> {_clock(segment.end_s, ',')}\n{_cue(segment)}\n\n"
        for number, segment in enumerate(segments, 1)
    )
    return "".join(cues)


def _vtt(segments: Sequence[SpokenSegment]) -> str:
    cues = (
        f"{_clock(segment.start_s, '.')} --> {_clock(segment.end_s, '.')}\n{_cue(segment)}\n\n"
        for segment in segments
    )
    return "WEBVTT\n\n" + "".join(cues)


def _cue(segment: SpokenSegment) -> str:
    # An arrow would begin another cue.
    return " ".join(segment.text.split()).replace("-->", "->")


def _clock(seconds: float, point: str) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    minutes, whole = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{whole:02}{point}{milliseconds:03}"
