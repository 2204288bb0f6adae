"""Speech recognition: what every recogniser answers, and which one a name means."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from vermilion.errors import BadParameter, ModelFileError
from vermilion.speech import speech_models

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.int16] | NDArray[np.float32]
    """[num_samples] mono; int16, or float32 in -1 to 1."""

SAMPLE_RATE = 16_000
"""Samples per second that every recogniser takes."""
RECOGNIZERS = ("base", "tiny.en", "pocketsphinx")
"""Best first; a folder in CTranslate2's layout, or owner/name of the model hub, is allowed too."""
Detail = Literal["text", "segments", "words"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word and when it was said."""

    text: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True, slots=True)
class SpokenSegment:
    """A stretch of speech, about a sentence."""

    text: str
    start_s: float
    end_s: float
    no_speech_prob: float
    avg_logprob: float
    words: tuple[SpokenWord, ...] = ()


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was heard. Without asking for more detail there is one segment, as long as the audio."""

    text: str
    segments: tuple[SpokenSegment, ...]
    no_speech_prob: float
    """Probability that nobody spoke; above 0.6 the text is likely invented."""
    language: str
    duration_s: float


class Recognizer(Protocol):
    """Hears speech. Safe to call from several threads; calls may wait for each other."""

    name: str
    multilingual: bool
    """Whether it knows more than English."""

    def transcribe(
        self, samples: Samples, *, detail: Detail = "text", language: str | None = "en", prompt: str = ""
    ) -> Transcript:
        """Blocks for about a tenth of the audio's length; `language` None has it detected."""
        ...


def find_recognizer(name: str | None = None, threads: int = 2) -> Recognizer:
    """Load a recogniser; without a name the best whose weights are on this machine.

    Raises BadParameter for an unknown name, ModelFileError where weights or packages are missing.
    """
    if name is None:
        name = best_recognizer()
    if name == "pocketsphinx":
        from vermilion.speech.sphinx import SphinxRecognizer

        return SphinxRecognizer()
    from vermilion.speech.whisper import WhisperRecognizer

    if name in RECOGNIZERS:
        folder = speech_models.checked_folder(f"whisper-{name}")
        return WhisperRecognizer(name, str(folder), threads)
    if Path(name).expanduser().is_dir() or "/" in name:
        return WhisperRecognizer(name, str(Path(name).expanduser()) if Path(name).exists() else name, threads)
    raise BadParameter(
        "recogniser", name, f"{', '.join(RECOGNIZERS)}, a folder, or owner/name of the model hub"
    )


def best_recognizer() -> str:
    """The best that can run here; says so where that is the weak fallback. Raises ModelFileError for none."""
    if find_spec("faster_whisper") is not None:
        for name in ("base", "tiny.en"):
            if speech_models.is_pulled(f"whisper-{name}"):
                return name
    if find_spec("pocketsphinx") is not None:
        _log.warning(
            "No Whisper weights are on this machine; pocketsphinx listens instead and hears much worse. "
            "Run: vermilion voice pull"
        )
        return "pocketsphinx"
    raise ModelFileError(
        "Nothing here can hear. Run: pip install 'vermilion[voice]', then: vermilion voice pull"
    )
