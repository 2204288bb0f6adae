"""Piper, a small neural voice: 0.05 to 0.1 seconds of one core for a second of speech."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vermilion.errors import ModelFileError

_VOICE = "en_US-joe-medium.onnx"


class PiperSynthesizer:
    """A `Synthesizer`. piper-tts is GPL-3: it is imported here and nowhere else."""

    name = "piper"

    def __init__(self, folder: Path, threads: int) -> None:
        try:
            import onnxruntime
            from piper import PiperVoice
            from piper.config import PiperConfig
        except ModuleNotFoundError as error:
            raise ModelFileError(f"{error.name} is missing. Run: pip install 'vermilion[voice]'") from error
        config = json.loads((folder / f"{_VOICE}.json").read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin take the processor from the model that is answering.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(
            str(folder / _VOICE), options, providers=["CPUExecutionProvider"]
        )
        self._voice = PiperVoice(session, PiperConfig.from_dict(config))
        self.sample_rate: int = self._voice.config.sample_rate

    def speak(self, text: str, speed: float = 1.0) -> Iterator[NDArray[np.int16]]:
        from piper.config import SynthesisConfig

        for piece in self._voice.synthesize(text, SynthesisConfig(length_scale=1 / speed)):
            yield piece.audio_int16_array
