"""Piper, a small neural voice: 0.05 to 0.1 seconds of one core for a second of speech."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vermilion.errors import ModelFileError
from vermilion.speech.onnx_session import onnx_session

_VOICE = "en_US-joe-medium.onnx"


class PiperSynthesizer:
    """A `Synthesizer`. piper-tts is GPL-3: it is imported here and nowhere else."""

    name = "piper"

    def __init__(self, folder: Path, threads: int) -> None:
        try:
            from piper import PiperVoice
            from piper.config import PiperConfig

            session = onnx_session(folder / _VOICE, threads)
        except ModuleNotFoundError as error:
            raise ModelFileError(f"{error.name} is missing. Run: pip install 'vermilion[voice]'") from error
        config = json.loads((folder / f"{_VOICE}.json").read_text(encoding="utf-8"))
        self._voice = PiperVoice(session, PiperConfig.from_dict(config))
        self.sample_rate: int = self._voice.config.sample_rate

    def speak(self, text: str, speed: float = 1.0) -> Iterator[NDArray[np.int16]]:
        from piper.config import SynthesisConfig

        for piece in self._voice.synthesize(text, SynthesisConfig(length_scale=1 / speed)):
            yield piece.audio_int16_array
