"""Smart Turn, which hears in the voice whether a caller has finished, with one model for all calls."""

from __future__ import annotations

from functools import cache
from typing import Any

from pipecat.audio.turn.smart_turn.base_smart_turn import BaseSmartTurn, SmartTurnParams
from pipecat.audio.turn.smart_turn.local_smart_turn_v3 import LocalSmartTurnAnalyzerV3


@cache
def turn_model() -> Any:
    """Its session, loaded once: each load stops all calls for 0.15 s and takes 10 MB, a run 20 more."""
    return LocalSmartTurnAnalyzerV3()._session


class TurnDetector(LocalSmartTurnAnalyzerV3):
    """Of one call."""

    def __init__(self, params: SmartTurnParams) -> None:
        # Smart Turn's own would load the model for each call.
        BaseSmartTurn.__init__(self, params=params)
        self._session = turn_model()
        self._log_data = False
