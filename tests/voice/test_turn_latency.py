"""A turn's stages out of pipecat's report, and figures over turns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vermilion.voice.turn_latency import TurnLatency, percentile, summary


def part(key: str, seconds: float) -> SimpleNamespace:
    return SimpleNamespace(key=key, duration_secs=seconds)


def test_stages_add_up_to_the_whole_and_unknown_parts_are_kept() -> None:
    parts = [
        part("endpointing_wait", 0.2),
        part("transcription", 0.3),
        part("llm_inference", 0.1),
        part("llm_tool_call", 0.05),
        part("function_handler", 0.05),
        part("something_new", 0.02),
    ]
    turn = TurnLatency.of(SimpleNamespace(contributions=parts, total_secs=0.72))
    assert turn.stages_ms["tool_call"] == pytest.approx(100)
    assert turn.stages_ms["pipeline"] == pytest.approx(20)
    assert sum(turn.stages_ms.values()) == pytest.approx(turn.total_ms)


def test_figures_over_turns() -> None:
    turns = [TurnLatency(float(total), {"synthesis": float(total) / 2}) for total in range(100, 1100, 100)]
    found = summary([*turns, TurnLatency(1100.0, {})])
    assert found["total"] == {"median": 600.0, "p95": 1050.0}
    assert found["synthesis"]["median"] == 250.0


def test_a_percentile_lies_between_the_nearest_ranks() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([7.0], 95) == 7.0
