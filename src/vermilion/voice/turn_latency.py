"""How long each stage of a turn took, from the caller's last sound to the first sound of the answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

STAGES = {
    "endpointing_wait": "endpointing",
    "transcription": "transcription",
    "turn_detection": "turn_detection",
    "llm_inference": "first_text",
    "llm_tool_call": "tool_call",
    "function_handler": "tool_call",
    "sentence_aggregation": "first_sentence",
    "speech_synthesis": "synthesis",
    "output_transport": "transport",
}
"""pipecat's name of a contribution to ours; what else passed is `pipeline`."""


@dataclass(frozen=True, slots=True)
class TurnLatency:
    """One turn. The stages add up to the whole."""

    total_ms: float
    stages_ms: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, breakdown: Any) -> TurnLatency:
        """From pipecat's `LatencyBreakdown`."""
        stages: dict[str, float] = {}
        for part in breakdown.contributions:
            name = STAGES.get(part.key, "pipeline")
            stages[name] = stages.get(name, 0.0) + part.duration_secs * 1000
        return cls(breakdown.total_secs * 1000, stages)


def summary(turns: list[TurnLatency]) -> dict[str, dict[str, float]]:
    """Median and 95th percentile in ms of each stage and of the total, over turns; a stage that a turn did
    not have counts as 0 there."""
    names = list(dict.fromkeys(name for turn in turns for name in turn.stages_ms))
    columns = {name: [turn.stages_ms.get(name, 0.0) for turn in turns] for name in names}
    columns["total"] = [turn.total_ms for turn in turns]
    return {
        name: {"median": round(median(values), 1), "p95": round(percentile(values, 95), 1)}
        for name, values in columns.items()
        if values
    }


def percentile(values: list[float], percent: float) -> float:
    """Between the two nearest ranks, in proportion."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
