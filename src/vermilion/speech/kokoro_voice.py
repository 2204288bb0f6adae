"""Kokoro-82M, the best voice here and the slowest: about a second of two cores for a second of speech."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vermilion.errors import ModelFileError
from vermilion.speech.onnx_session import onnx_session
from vermilion.speech.sentences import sentences

MODEL = "kokoro-v1.0.int8.onnx"
_STYLE = Path(__file__).parent / "assets" / "kokoro-af_heart.npy"
"""[510, 1, 256] float32: the speaker, for every count of phonemes."""
_SLOWEST, _FASTEST = 0.5, 2.0


class KokoroSynthesizer:
    """A `Synthesizer` on all cores; it speaks at half to double speed.

    kokoro-onnx brings espeak-ng, GPL-3, for its phonemes: it is imported here and nowhere else.
    """

    name = "kokoro"
    sample_rate = 24_000

    def __init__(self, folder: Path) -> None:
        try:
            from kokoro_onnx import Kokoro

            session = onnx_session(folder / MODEL, threads=0)
        except ModuleNotFoundError as error:
            raise ModelFileError(f"{error.name} is missing. Run: pip install 'vermilion[kokoro]'") from error
        self._kokoro = Kokoro.from_session(session, str(_STYLE))
        self._style: NDArray[np.float32] = np.load(_STYLE)

    def speak(self, text: str, speed: float = 1.0) -> Iterator[NDArray[np.int16]]:
        possible = min(max(speed, _SLOWEST), _FASTEST)
        for sentence in sentences(text):
            phonemes = self._kokoro.tokenizer.phonemize(sentence, "en-us")
            if phonemes:
                samples, _ = self._kokoro.create(phonemes, self._style, possible, is_phonemes=True)
                yield (np.clip(samples, -1, 1) * 32767).astype(np.int16)
