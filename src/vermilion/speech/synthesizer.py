"""Speech synthesis: what every synthesiser gives, and which one a name means."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from vermilion.errors import BadParameter, ModelFileError
from vermilion.speech import speech_models

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SYNTHESIZERS = ("piper", "flite", "kokoro")

_log = logging.getLogger(__name__)


class Synthesizer(Protocol):
    """Speaks. Safe to call from several threads; calls may wait for each other."""

    name: str
    sample_rate: int
    """Samples per second of what `speak` gives."""

    def speak(self, text: str, speed: float = 1.0) -> Iterator[NDArray[np.int16]]:
        """[num_samples] mono, a piece a sentence as each is ready; nothing for a text without words."""
        ...


def find_synthesizer(name: str | None = None, threads: int = 1) -> Synthesizer:
    """Load a synthesiser; without a name the best that can speak on this machine.

    Raises BadParameter for an unknown name, ModelFileError where weights or programs are missing.
    """
    name = best_synthesizer() if name is None else name
    if name == "piper":
        from vermilion.speech.piper_voice import PiperSynthesizer

        return PiperSynthesizer(speech_models.checked_folder("piper-joe"), threads)
    if name == "flite":
        from vermilion.speech.flite import FliteSynthesizer

        return FliteSynthesizer()
    if name == "kokoro":
        from vermilion.speech.kokoro_voice import KokoroSynthesizer

        return KokoroSynthesizer(speech_models.checked_folder("kokoro"))
    raise BadParameter("synthesiser", name, ", ".join(SYNTHESIZERS))


def best_synthesizer() -> str:
    """Piper with its voice, else flite, and says so. Raises ModelFileError for neither."""
    if find_spec("piper") is not None and speech_models.is_pulled("piper-joe"):
        return "piper"
    if shutil.which("flite"):
        _log.warning("Piper or its voice is missing here; flite speaks instead. Run: vermilion voice pull")
        return "flite"
    raise ModelFileError(
        "Nothing here can speak. Run: pip install 'vermilion[voice]', then: vermilion voice pull"
    )
