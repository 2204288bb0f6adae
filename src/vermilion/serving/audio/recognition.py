"""Recordings of any length, recognised in pieces that are cut where it is quiet.

A piece at a time, so that a long recording can be given up, streamed and interrupted by shorter ones; and no
recogniser has to hold more than half a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vermilion.speech.recognizer import SAMPLE_RATE, Detail, Recognizer, SpokenSegment, Transcript

_LEAST_S = 12
_MOST_S = 28
"""Length of a piece: Whisper reads at most 30 s at once."""
_FRAME = SAMPLE_RATE // 50
_PAUSE_FRAMES = 15
"""20 ms each: a cut lies in the middle of the quietest 0.3 s."""

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RecognitionOptions:
    """How a recording is to be recognised."""

    detail: Detail
    language: str | None
    """ISO 639-1; None has it detected in the first piece."""
    prompt: str


def cut(samples_S: Samples) -> Iterator[Samples]:
    """Pieces of at most `_MOST_S` that together are the recording."""
    while len(samples_S) > _MOST_S * SAMPLE_RATE:
        end = _quietest(samples_S[: _MOST_S * SAMPLE_RATE], _LEAST_S * SAMPLE_RATE)
        yield samples_S[:end]
        samples_S = samples_S[end:]
    yield samples_S


def _quietest(samples_S: Samples, start: int) -> int:
    """The sample behind `start` about which there is least sound."""
    frames_FS = samples_S[start:].reshape(-1, _FRAME)
    power_F = np.convolve(np.square(frames_FS).mean(1), np.ones(_PAUSE_FRAMES), "valid")
    return start + (int(power_F.argmin()) + _PAUSE_FRAMES // 2) * _FRAME


def recognized(
    recognizer: Recognizer, samples_S: Samples, options: RecognitionOptions
) -> Iterator[Transcript]:
    """The transcript of each piece, its times counted from the beginning of the recording."""
    language, prompt, start = options.language, options.prompt, 0
    for piece_S in cut(samples_S):
        heard = recognizer.transcribe(piece_S, detail=options.detail, language=language, prompt=prompt)
        language, prompt = heard.language, ""
        yield replace(heard, segments=tuple(_later(one, start / SAMPLE_RATE) for one in heard.segments))
        start += len(piece_S)


def _later(segment: SpokenSegment, seconds: float) -> SpokenSegment:
    words = tuple(
        replace(word, start_s=word.start_s + seconds, end_s=word.end_s + seconds) for word in segment.words
    )
    return replace(segment, start_s=segment.start_s + seconds, end_s=segment.end_s + seconds, words=words)


def joined(pieces: list[Transcript], num_samples: int) -> Transcript:
    """One transcript of the recording's pieces."""
    return Transcript(
        " ".join(piece.text for piece in pieces if piece.text),
        tuple(segment for piece in pieces for segment in piece.segments),
        min((piece.no_speech_prob for piece in pieces), default=1.0),
        pieces[0].language if pieces else "en",
        num_samples / SAMPLE_RATE,
    )
