"""What the worker keeps for a request: it grows with the rows of a pass alone, and goes with the request."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests import tiny
from vermilion.decoding.forward_jobs import Job
from vermilion.decoding.passes import Pass, Segment
from vermilion.engine.device_state import DeviceStates, distances
from vermilion.engine.engine import Engine
from vermilion.engine.worker import Worker
from vermilion.types import Decoding, Request, Sampling

CPU = torch.device("cpu")


def test_the_slot_table_follows_the_pages_of_each_request() -> None:
    states = DeviceStates(4, CPU)
    pages: dict[str, list[int]] = {f"{i}": [] for i in range(11)}
    for step in range(40):
        for i, mine in enumerate(pages.values()):
            mine.extend([100 * i + 3 * step] * ((step + i) % 3 == 0))
        found = states.update(list(pages.items()))
        for state, mine in zip(found, pages.values(), strict=True):
            wanted = [page * 4 + offset for page in mine for offset in range(4)]
            assert states.table_TS[state.table_row, : len(wanted)].tolist() == wanted
            assert state.unbroken == (len(mine) <= 1)
    states.release("3")
    assert states.requests == pages.keys() - {"3"}
    (again,) = states.update([("new", [7, 8, 9])])
    assert again.unbroken and again.first_page == 7
    assert states.table_TS[again.table_row, :12].tolist() == list(range(28, 40))


class Pages(list[int]):
    """Pages that count how many of them are looked at."""

    looked_at = 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        self.looked_at += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[int]:
        self.looked_at += len(self)
        return super().__iter__()


def test_a_step_costs_the_host_the_same_however_long_the_text_is(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(tiny.model("causal-shift"), 40, 8, tiny.MASK)
    moved: list[int] = []
    tensor = torch.tensor

    def counted(values: object, **settings: object) -> Tensor:
        made = tensor(values, **settings)  # type: ignore[arg-type]
        moved.append(made.numel())
        return made

    monkeypatch.setattr(torch, "tensor", counted)
    costs = []
    for name, context in (("short", 16), ("long", 256)):
        pages = Pages(range(0, 40))
        for step in range(3):
            at = context + 2 * step
            clean = Segment((3, 4), at, at, at, span=1)
            noisy = Segment((tiny.MASK,) * 3, at + 2, at + 2, at + 2, 0, noisy=True, masked=(True,) * 3)
            pages.looked_at = 0
            moved.clear()
            worker.run([Job(pages, Pass((clean, noisy)), [], request=name)])
        costs.append((pages.looked_at, sum(moved)))
    assert costs[0] == costs[1]
    assert costs[0][0] < 10 and costs[0][1] < 60


def engine(**settings: object) -> tuple[Engine, DeviceStates]:
    built = tiny.engine("causal-shift", tiny.model("causal-shift"), **settings)
    assert isinstance(built.worker, Worker)
    return built, built.worker.states


def requests(count: int, max_tokens: int) -> list[Request]:
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
    return [Request(f"{i}", (5, 9, 33, i + 2), sampling, Decoding("ar")) for i in range(count)]


def test_it_is_freed_when_a_request_finishes_or_is_aborted() -> None:
    built, states = engine()
    for request in requests(3, 6):
        built.submit(request)
    built.step()
    assert states.requests == {"0", "1", "2"}
    built.abort("1")
    assert states.requests == {"0", "2"}
    while built.has_work:
        built.step()
    assert states.requests == set()


def test_it_is_freed_when_a_request_loses_its_memory() -> None:
    """What a decoder keeps goes too: a request that comes back starts from its tokens."""
    built, states = engine(kv_tokens=216, max_rows=64)
    for request in requests(4, 60):
        built.submit(request)
    lost = 0
    while built.has_work:
        running = {sequence.request.id for sequence in built.scheduler.running}
        built.step()
        kept = {sequence.request.id for sequence in built.scheduler.running if sequence.pages}
        assert states.requests <= kept
        lost += len(running - kept - states.requests)
        for name in states.requests:
            tensors = states.of(name).tensors
            assert name in running or not tensors
            tensors["seen"] = torch.ones(1)
    assert built.scheduler.preemptions > 0 and lost > 0
    assert states.requests == set()


def test_how_far_distributions_have_moved_since_the_last_pass() -> None:
    kept: dict[str, torch.Tensor] = {}
    first = torch.log_softmax(torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, -torch.inf]]).double(), -1)
    second = torch.log_softmax(torch.tensor([[2.0, 0.0, -torch.inf], [0.0, 1.0, 2.0]]).double(), -1)
    assert distances(first, torch.tensor([7, 9]), kept) == [math.inf, math.inf]
    moved, same, new = distances(torch.cat([second, second[:1]]), torch.tensor([9, 7, 8]), kept)
    p, q = second[0].exp(), first[1].exp()
    assert moved == pytest.approx(float((p[:2] * (p[:2] / q[:2]).log()).sum()))
    assert same == pytest.approx(0.0, abs=1e-12) and new == math.inf
