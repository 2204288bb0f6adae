"""Any arrivals, aborts, failures and short memory: the right keys, no lost page, no starved request."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests import tiny
from tests.engine.shadow import DECODERS, Memory, ShadowWorker, engine
from vermilion.decoding.drafting import RowCosts
from vermilion.engine.engine import Engine
from vermilion.errors import BadParameter
from vermilion.types import Canvas, Decoding, Event, Finish, Request, Sampling, Text

PAGE = (5, 9, 3, 13, 12, 7, 2, 11)
COMMON = (*PAGE, *PAGE, 6, 4, 14, 8, 10, 3, 9, 15, *PAGE)
"""Pages of equal content at other places, which must not be taken for each other."""
GENERATE = (Phase.explicit, Phase.generate)
"""Shrinking traffic takes minutes; the first failing run says enough."""
LONGEST = 44
CANVAS_SLOTS = 24
"""Most slots behind the settled text that the decodings below use: 8 drafts and 3 branches of 5 rows."""


@st.composite
def decodings(draw: st.DrawFn, kind: str) -> Decoding:
    decoders = DECODERS if kind == "causal-shift" else DECODERS[3:]
    decoder = draw(st.sampled_from(decoders))
    return Decoding(
        decoder,
        threshold=draw(st.sampled_from((0.0, 0.2, 0.6, 0.95))),
        block_length=draw(st.integers(1, 5)),
        max_steps=draw(st.integers(0, 3)),
        revise_below=draw(st.sampled_from((0.0, 0.0, 0.1, 0.5))),
        max_revisions=draw(st.integers(0, 2)),
        draft_nodes=draw(st.integers(1, 8)),
        branches=draw(st.sampled_from((0, 0, 1, 3))),
        accept_above=draw(st.sampled_from((0.0, 0.3, 1.0))),
    )


@st.composite
def requests(draw: st.DrawFn, kind: str) -> Request:
    shared = draw(st.sampled_from((0, 3, 8, 16, 19, 24, 32)))
    own = draw(st.lists(st.integers(2, 16), min_size=0 if shared else 1, max_size=6))
    sampling = Sampling(
        max_tokens=LONGEST - shared - len(own) - draw(st.sampled_from((0, 1, 2, 3))),
        min_tokens=draw(st.sampled_from((0, 0, 6))),
        ignore_eos=draw(st.booleans()),
        stop=draw(st.sampled_from(((), (), ("#&",), ("%", "-.")))),
        logprobs=draw(st.sampled_from((None, 0, 2))),
    )
    return Request(
        "", COMMON[:shared] + tuple(own), sampling, draw(decodings(kind)), canvas=draw(st.booleans())
    )


def alone(request: Request, kind: str) -> list[Event]:
    """The events of a request that has a large engine to itself."""
    one, _ = engine(tiny.TRAITS[kind], Memory(share=False), 512)
    return tiny.run(one, [request])[request.id]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


@dataclass
class Open:
    request: Request
    expected: list[Event]
    events: list[Event] = field(default_factory=list)

    def take(self, event: Event) -> None:
        assert not (self.events and isinstance(self.events[-1], Finish)), "an event after the finish"
        if isinstance(event, Canvas):
            earlier = [old.progress for old in self.events if isinstance(old, Canvas)]
            assert not earlier or event.progress >= earlier[-1]
            assert event.text.startswith(text_of(self.events))
        self.events.append(event)

    def check_whole(self) -> None:
        finish, wanted = self.events[-1], self.expected[-1]
        assert isinstance(finish, Finish) and isinstance(wanted, Finish)
        assert text_of(self.events) == text_of(self.expected)
        assert finish.reason == wanted.reason
        assert finish.usage.prompt_tokens == len(self.request.prompt)
        assert finish.usage.completion_tokens == wanted.usage.completion_tokens
        infos = [info.id for event in self.events if isinstance(event, Text) for info in event.tokens]
        if self.request.sampling.logprobs is not None:
            stopped_by_eos = finish.usage.completion_tokens - len(infos)
            assert stopped_by_eos in (0, 1) and (finish.reason == "stop" or not stopped_by_eos)
        if self.request.decoding.decoder != "lossless":
            # How often lossless drafts are made depends on how busy the engine is; the text does not.
            assert replace(finish.usage, cached_tokens=0) == replace(wanted.usage, cached_tokens=0)


CHEAP_ROWS = RowCosts((1, 64), (4.0, 5.0))
DEAR_ROWS = RowCosts((1, 8, 64), (4.0, 9.0, 80.0), noisy_row_ms=0.3)


class SteadyCosts(RowCosts):
    """Learns nothing from how fast a worker without a model is."""

    def note(self, rows: int, noisy: int, ms: float) -> None:
        pass


class Traffic(RuleBasedStateMachine):
    """Random traffic over a small memory. Subclasses name the kind of model."""

    kind = ""
    preemptions = shared_tokens = moves = 0
    built: Engine
    worker: ShadowWorker

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[str, Open] = {}
        self.count = 0

    @initialize(
        extra_pages=st.integers(0, 5),
        max_rows=st.sampled_from((256, 40, 13, 1)),
        prefill_chunk=st.sampled_from((256, 11, 4, 1)),
        max_running=st.sampled_from((2, 4, 8)),
        costs=st.sampled_from((None, CHEAP_ROWS, DEAR_ROWS)),
        max_pause_ms=st.sampled_from((math.inf, 25.0, 0.0)),
        share=st.booleans(),
    )
    def start(self, extra_pages: int, **limits: object) -> None:
        least = -(-(LONGEST + CANVAS_SLOTS) // 8)
        sizes = Memory(num_pages=least + extra_pages, **limits)  # type: ignore[arg-type]
        self.built, self.worker = engine(tiny.TRAITS[self.kind], sizes, LONGEST + 1)

    @rule(several=st.sampled_from((3, 2, 1)), data=st.data())
    def submit(self, several: int, data: st.DataObject) -> None:
        for _ in range(several):
            self.count += 1
            request = replace(data.draw(requests(self.kind)), id=f"r{self.count}")
            self.built.submit(request)
            self.open[request.id] = Open(request, alone(request, self.kind))

    @precondition(lambda self: self.open)
    @rule(steps=st.sampled_from((16, 4, 1)))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            if not self.open:
                return
            before = self.worker.steps
            self._deliver(self.built.step())
            assert self.worker.steps == before + 1, "a step with open requests did nothing"

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        finish = self.built.abort(name)
        assert finish is not None and finish.reason == "abort"
        assert self.built.abort(name) is None
        one = self.open.pop(name)
        assert text_of(one.expected).startswith(text_of(one.events))

    @precondition(lambda self: len(self.open) > 2)
    @rule()
    def fail_once(self) -> None:
        """A forward of several requests is repeated one by one; one that fails alone ends."""
        self.worker.failing = True
        for name, event in self.built.step():
            assert isinstance(event, Finish) and event.reason == "error"
            del self.open[name]
        assert not self.worker.failing

    @precondition(lambda self: len(self.open) > 2)
    @rule()
    def give_up(self) -> None:
        ended = self.built.fail_all("broken")
        assert sorted(name for name, _ in ended) == sorted(self.open)
        assert all(isinstance(event, Finish) and event.reason == "error" for _, event in ended)
        self.open.clear()

    def _deliver(self, events: list[tuple[str, Event]]) -> None:
        for name, event in events:
            one = self.open[name]
            one.take(event)
            if isinstance(event, Finish):
                one.check_whole()
                del self.open[name]

    @invariant()
    def memory_adds_up(self) -> None:
        if not hasattr(self, "built"):
            return
        scheduler = self.built.scheduler
        scheduler.cache.check()
        held = Counter(page for sequence in scheduler.running for page in sequence.pages)
        assert [held[page] for page in range(scheduler.cache.num_pages)] == scheduler.cache._holders
        assert not any(sequence.pages for sequence in scheduler.waiting)
        order = [int(s.request.id[1:]) for s in (*scheduler.running, *scheduler.waiting)]
        assert order == sorted(order), "a younger request stands before an older one"
        assert sorted(order) == sorted(int(name[1:]) for name in self.open)
        assert len(scheduler.running) <= scheduler.limits.max_running

    def teardown(self) -> None:
        if not hasattr(self, "built"):
            return
        # A lone request takes a step per token or per prefill chunk at the most; the oldest always advances.
        bound = 4 * LONGEST * (len(self.open) + 1)
        for _ in range(bound):
            if not self.open:
                break
            self.step(1)
            self.memory_adds_up()
        assert not self.open, "a request starved"
        assert self.built.scheduler.cache.num_held == 0
        totals = type(self)
        totals.preemptions += self.built.scheduler.preemptions
        totals.shared_tokens += self.built.scheduler.prefix_hit_tokens
        totals.moves += self.worker.moves
        super().teardown()


def test_no_ready_request_is_passed_over_twice() -> None:
    built, worker = engine(tiny.TRAITS["causal-shift"], Memory(max_rows=2), 128)
    ids = [f"{i}" for i in range(6)]
    for name in ids:
        built.submit(Request(name, (5,), Sampling(max_tokens=12, ignore_eos=True), Decoding("ar")))
    told = Counter[str]()
    for step in range(1, 3 * 8):
        told.update(name for name, event in built.step() if isinstance(event, Text))
        assert max(told.values()) - min(told[name] for name in ids) <= 1, step
    assert worker.most_rows == 2


@pytest.mark.parametrize("prefill_chunk", [1, 16])
def test_decoding_goes_on_while_a_long_prompt_is_stored(prefill_chunk: int) -> None:
    sizes = Memory(max_rows=16, prefill_chunk=prefill_chunk)
    built, worker = engine(tiny.TRAITS["causal-shift"], sizes, 512)
    built.submit(Request("short", (5, 6), Sampling(max_tokens=30, ignore_eos=True), Decoding("ar")))
    built.step()
    built.submit(Request("long", (7,) * 64, Sampling(max_tokens=4), Decoding("ar")))
    for _ in range(20):
        assert "short" in {name for name, _ in built.step()}
    assert worker.most_rows <= 16


@pytest.mark.parametrize("num_prompts", [1, 5])
@pytest.mark.parametrize("prompt_length", [28, 300])
def test_prompts_are_read_in_pieces_that_keep_a_stream_going(num_prompts: int, prompt_length: int) -> None:
    costs = SteadyCosts((1, 8, 64), (4.0, 9.0, 80.0))
    sizes = Memory(num_pages=600, costs=costs, max_pause_ms=50.0)
    built, worker = engine(tiny.TRAITS["causal-shift"], sizes, 900)
    sampling = Sampling(max_tokens=200, ignore_eos=True)
    stream = built.submit(Request("stream", (3, 4), sampling, Decoding("ar")))
    built.step()
    for number in range(num_prompts):
        prompt = tuple(2 + (number + at * (number + 2)) % 14 for at in range(prompt_length))
        built.submit(Request(f"prompt{number}", prompt, Sampling(max_tokens=1), Decoding("ar")))
    answered: set[str] = set()
    for _ in range(200):
        worker.most_rows, settled = 0, len(stream.settled)
        events = built.step()
        assert costs.at(worker.most_rows) <= 50.0
        assert len(stream.settled) > settled, "every step brings the stream on"
        answered |= {name for name, event in events if isinstance(event, Finish)}
        if len(answered) == num_prompts:
            break
    else:
        raise AssertionError("the prompts are not read to their end")
    # Nobody is kept waiting by a prompt that is alone: it is read as fast as ever.
    built.abort("stream")
    built.submit(Request("alone", tuple(2 + at % 13 for at in range(250)), sampling, Decoding("ar")))
    built.step()
    assert worker.most_rows == 250


def test_drafts_that_can_never_fit_are_refused_not_waited_for() -> None:
    sizes = Memory(num_pages=16)
    built, _ = engine(tiny.TRAITS["causal-shift"], sizes, 120)
    wide = Decoding("lossless", block_length=8, draft_nodes=16, branches=4)
    sampling = Sampling(max_tokens=40, ignore_eos=True)
    tiny.run(built, [Request("fits", (5,) * 40, sampling, wide)])
    with pytest.raises(BadParameter, match="48"):
        built.submit(Request("never", (5,) * 41, sampling, wide))


def _machine(name: str) -> type[Traffic]:
    return type(f"Traffic_{name}", (Traffic,), {"kind": name})


@pytest.mark.parametrize("kind", tiny.TRAITS)
def test_random_traffic(kind: str) -> None:
    machine = _machine(kind)
    hard = settings(max_examples=16, stateful_step_count=30, phases=GENERATE)
    run_state_machine_as_test(machine, settings=hard)
    # The traffic was hard enough to mean something.
    assert machine.preemptions > 5
    if not kind.startswith("full"):
        assert machine.shared_tokens > 100
    if kind == "causal-shift":
        assert machine.moves > 5


def test_realtime_requests_go_first_but_not_for_ever() -> None:
    model = tiny.model("causal-shift")
    one = tiny.engine("causal-shift", model, max_running=1)
    sampling = Sampling(max_tokens=2)
    for name in ("slow-0", "slow-1", *(f"voice-{i}" for i in range(8))):
        one.submit(Request(name, (5, 6), sampling, realtime=name.startswith("voice")))
    finished = []
    while one.has_work:
        finished += [name for name, event in one.step() if isinstance(event, Finish)]
    assert finished[:4] == [f"voice-{i}" for i in range(4)]
    assert finished[4:6] == ["slow-0", "slow-1"]
