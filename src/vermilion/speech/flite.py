"""flite, a small program of Debian's: robotic but clear, free of the GPL, and needs no weights."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vermilion.errors import EngineFailure, ModelFileError
from vermilion.speech.sentences import sentences

_TIMEOUT_S = 30.0


class FliteSynthesizer:
    """A `Synthesizer` of one voice, slt; a process a sentence."""

    name = "flite"
    sample_rate = 16_000

    def __init__(self) -> None:
        self._program = shutil.which("flite")
        if self._program is None:
            raise ModelFileError("flite is missing. Run: apt-get install flite")

    def speak(self, text: str, speed: float = 1.0) -> Iterator[NDArray[np.int16]]:
        for sentence in sentences(text):
            yield self._spoken(sentence, speed)

    def _spoken(self, sentence: str, speed: float) -> NDArray[np.int16]:
        assert self._program is not None
        with tempfile.TemporaryDirectory() as folder:
            said, heard = Path(folder, "text"), Path(folder, "speech.wav")
            said.write_text(sentence, encoding="utf-8")
            command = [self._program, "-voice", "slt", "--setf", f"duration_stretch={1 / speed:.3f}"]
            command += ["-f", str(said), "-o", str(heard)]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
            except (subprocess.SubprocessError, OSError) as error:
                raise EngineFailure(f"flite failed: {error}") from error
            with wave.open(str(heard)) as file:
                return np.frombuffer(file.readframes(file.getnframes()), np.int16)
