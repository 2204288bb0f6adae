"""Silero's voice detector, which tells of a pause before it is one that ends a stretch of speech."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cache

from pipecat.audio.vad.silero import SileroOnnxModel, SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADAnalyzer, VADState

PAUSE_S = 0.1
"""Half of what it takes until the detector says that the caller stopped; few words have such a gap."""
_BYTES_PER_SAMPLE = 2


@cache
def voice_model() -> SileroOnnxModel:
    """Silero, loaded once: each load stops all calls for 0.15 s and takes 10 MB."""
    return SileroVADAnalyzer()._model


class PauseDetector(SileroVADAnalyzer):
    """Calls `paused` once in each silence, when it has lasted `PAUSE_S`."""

    def __init__(self, paused: Callable[[], None]) -> None:
        # Silero's own would load the model for each call.
        VADAnalyzer.__init__(self)
        self._model = copy(voice_model())
        self._model.reset_states()
        self._windows_since_reset = self._low_confidence_windows = 0
        self._paused = paused
        self._silence_s = 0.0

    async def analyze_audio(self, buffer: bytes) -> VADState:
        """`buffer`: 16-bit mono PCM, some milliseconds."""
        state = await super().analyze_audio(buffer)
        before_s = self._silence_s
        length_s = len(buffer) / _BYTES_PER_SAMPLE / self.sample_rate
        self._silence_s = before_s + length_s if state is VADState.STOPPING else 0.0
        if before_s < PAUSE_S <= self._silence_s:
            self._paused()
        return state
