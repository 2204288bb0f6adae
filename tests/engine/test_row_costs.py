"""What a model's forwards are measured to cost when it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from vermilion.decoding.forward_jobs import Job
from vermilion.decoding.passes import Reading
from vermilion.engine import row_costs


class Machine:
    """Forwards of 4 ms and half a millisecond a row, and a clock; now and then somebody else has the core for
    half of the time."""

    def __init__(self, busy_from_s: float = 0.0, busy_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.runs = 0
        self._busy_from_s = busy_from_s
        self._busy_s = busy_s

    def perf_counter(self) -> float:
        return self.now_s

    def run(self, jobs: Sequence[Job]) -> list[list[Reading]]:
        self._compute(4.0 + 0.5 * jobs[0].rows.num_rows)
        self.runs += 1
        return [[]]

    def draft(self, jobs: Sequence[Job]) -> list[list[Reading]]:
        self._compute(0.2 + 0.1 * jobs[0].rows.num_rows)
        return [[]]

    def _compute(self, ms: float) -> None:
        busy = (self.now_s - self._busy_from_s) % 0.1 < self._busy_s
        self.now_s += 1e-3 * ms * (1 + busy)


@pytest.mark.parametrize("busy_from_s", [0.01 * k for k in range(10)])
def test_a_busy_machine_does_not_make_the_first_rows_look_dear(
    busy_from_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(busy_from_s, busy_s=0.05)
    monkeypatch.setattr(row_costs, "time", SimpleNamespace(perf_counter=machine.perf_counter))
    costs = row_costs.measure(machine, 16, 64, denoises=False, drafts=True)
    assert [costs.at(rows) for rows in (1, 2, 4)] == pytest.approx([4.5, 5.0, 6.0], rel=0.12)
    assert machine.now_s < 0.8


def test_every_size_is_measured_however_slow_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    monkeypatch.setattr(
        row_costs, "time", SimpleNamespace(perf_counter=lambda: 1000 * machine.perf_counter())
    )
    costs = row_costs.measure(machine, 16, 64, denoises=True)
    assert costs.at(64) == pytest.approx(36_000)
    assert machine.runs == 9, "one of each, and one before"
