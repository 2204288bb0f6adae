"""Whisper through faster-whisper: greedy, and with an encoder that reads less than 30 seconds where it can.

Whisper pads every utterance to 30 s. An encoder that reads 12 s instead takes a third of the time, and hears
turns of a conversation as well (bench/results/voice.jsonl). Below 10 s its decoder begins to loop.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from vermilion.errors import ModelFileError
from vermilion.speech.recognizer import (
    SAMPLE_RATE,
    Detail,
    SpokenSegment,
    SpokenWord,
    Transcript,
)

if TYPE_CHECKING:
    from vermilion.speech.recognizer import Samples

_CONTEXT_S = {"base": 12.0, "tiny.en": 15.0}
_OTHER_CONTEXT_S = 15.0
_WHOLE_CONTEXT_S = 30.0
_ROOM_S = 1.0
"""Of silence behind the speech, which the decoder needs to end."""
_MAX_TOKENS_PER_S = 12
"""Of speech; people say fewer than 8. A decoder that loops is cut there."""


class WhisperRecognizer:
    """A `Recognizer`. Its threads are its own, apart from those of the calls."""

    def __init__(self, name: str, place: str, threads: int) -> None:
        try:
            from faster_whisper import WhisperModel
        except ModuleNotFoundError as error:
            raise ModelFileError("faster-whisper is missing. Run: pip install 'vermilion[voice]'") from error
        self.name = name
        self._model = WhisperModel(place, device="cpu", compute_type="int8", cpu_threads=threads)
        self.multilingual = bool(self._model.model.is_multilingual)
        self._context_s = _CONTEXT_S.get(name, _OTHER_CONTEXT_S)

    def transcribe(
        self, samples: Samples, *, detail: Detail = "text", language: str | None = "en", prompt: str = ""
    ) -> Transcript:
        scale = 1 / 32768 if samples.dtype == np.int16 else 1.0
        waveform = samples.astype(np.float32) * np.float32(scale)
        duration_s = len(waveform) / SAMPLE_RATE
        short = duration_s <= _WHOLE_CONTEXT_S - _ROOM_S and language is not None and not prompt
        if detail == "text" and short:
            return self._heard_at_once(waveform, duration_s, language or "en")
        return self._heard_in_windows(waveform, detail, language, prompt)

    def _heard_at_once(self, waveform: Samples, duration_s: float, language: str) -> Transcript:
        if not len(waveform):
            return Transcript("", (), 1.0, language, 0.0)
        extractor = self._model.feature_extractor
        features = extractor(waveform, padding=0)
        seconds = min(_WHOLE_CONTEXT_S, max(self._context_s, duration_s + _ROOM_S))
        # An even number: the encoder halves it.
        frames = int(seconds * SAMPLE_RATE / extractor.hop_length) // 2 * 2
        padded = np.pad(features[:, :frames], ((0, 0), (0, max(0, frames - features.shape[1]))))
        tokenizer = self._tokenizer(language)
        result = self._model.model.generate(
            self._model.encode(padded),
            [self._model.get_prompt(tokenizer, [], without_timestamps=True)],
            beam_size=1,
            max_length=min(self._model.max_length, 24 + int(_MAX_TOKENS_PER_S * duration_s)),
            suppress_tokens=self._suppressed,
            return_scores=True,
            return_no_speech_prob=True,
        )[0]
        tokens = result.sequences_ids[0]
        text = tokenizer.decode([token for token in tokens if token < tokenizer.eot]).strip()
        segment = SpokenSegment(text, 0.0, duration_s, result.no_speech_prob, float(result.scores[0]))
        return Transcript(text, (segment,), result.no_speech_prob, language, duration_s)

    def _heard_in_windows(
        self, waveform: Samples, detail: Detail, language: str | None, prompt: str
    ) -> Transcript:
        """Whisper's own way: windows of 30 s, with times."""
        found, info = self._model.transcribe(
            waveform,
            language=language if self._model.model.is_multilingual else "en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            word_timestamps=detail == "words",
            initial_prompt=prompt or None,
        )
        segments = tuple(_segment(each) for each in found)
        no_speech_prob = min((each.no_speech_prob for each in segments), default=1.0)
        text = " ".join(each.text for each in segments if each.text)
        return Transcript(text, segments, no_speech_prob, info.language, info.duration)

    def _tokenizer(self, language: str) -> Any:
        from faster_whisper.tokenizer import Tokenizer

        multilingual = self._model.model.is_multilingual
        return Tokenizer(
            self._model.hf_tokenizer, multilingual, "transcribe", language if multilingual else "en"
        )

    @cached_property
    def _suppressed(self) -> list[int]:
        from faster_whisper.transcribe import get_suppressed_tokens

        return list(get_suppressed_tokens(self._tokenizer("en"), [-1]))


def _segment(found: Any) -> SpokenSegment:
    words = tuple(
        SpokenWord(word.word.strip(), float(word.start), float(word.end), float(word.probability))
        for word in found.words or ()
    )
    start_s, end_s = float(found.start), float(found.end)
    return SpokenSegment(found.text.strip(), start_s, end_s, found.no_speech_prob, found.avg_logprob, words)
