"""pocketsphinx, whose model lies in its own wheel: what listens where no Whisper weights can be had."""

from __future__ import annotations

import threading
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

_FRAMES_PER_S = 100


class SphinxRecognizer:
    """A `Recognizer` of English."""

    name = "pocketsphinx"
    multilingual = False

    def __init__(self) -> None:
        try:
            from pocketsphinx import Decoder
        except ModuleNotFoundError as error:
            raise ModelFileError("pocketsphinx is missing. Run: pip install 'vermilion[voice]'") from error
        self._decoder = Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")
        self._lock = threading.Lock()

    def transcribe(
        self, samples: Samples, *, detail: Detail = "text", language: str | None = "en", prompt: str = ""
    ) -> Transcript:
        pcm = samples if samples.dtype == np.int16 else (samples * 32767).astype(np.int16)
        duration_s = len(pcm) / SAMPLE_RATE
        if not len(pcm):
            return Transcript("", (), 1.0, "en", 0.0)
        with self._lock:
            self._decoder.start_utt()
            self._decoder.process_raw(pcm.tobytes(), full_utt=True)
            self._decoder.end_utt()
            heard = self._decoder.hyp()
            spoken = (self._decoder.seg() or ()) if detail == "words" and heard else ()
            words = tuple(_word(each) for each in spoken if each.word[0] not in "<[")
        text = heard.hypstr.strip() if heard else ""
        missing = 0.0 if text else 1.0
        segment = SpokenSegment(text, 0.0, duration_s, missing, 0.0, words)
        return Transcript(text, (segment,) if text else (), missing, "en", duration_s)


def _word(spoken: Any) -> SpokenWord:
    """Without the number of its pronunciation, as in "read(2)"."""
    start_s, end_s = spoken.start_frame / _FRAMES_PER_S, spoken.end_frame / _FRAMES_PER_S
    return SpokenWord(spoken.word.partition("(")[0], start_s, end_s, 1.0)
