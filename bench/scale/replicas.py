"""A replica as the engine schedules it: decoding streams share passes, prompts are read in between.

A pass with n streams takes `costs.pass_s(n)`. While prompts are waiting, a pass is filled up with their
tokens to `max_pause_s`, or to twice what it took without them, as `engine/scheduler.py` does. Between events
all streams go on at the same rate, so a replica only computes when something begins or ends.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.scale.traces import Call

PAGE = 16


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured on one replica."""

    streams: Sequence[float]
    """Numbers of streams, ascending, for which `passes_ms` are known."""
    passes_ms: Sequence[float]
    prompt_token_ms: float
    tokens_per_pass: float = 1.0

    def pass_s(self, streams: float) -> float:
        """A straight line between what was measured, and on beyond it."""
        at = min(max(1, bisect_right(self.streams, streams)), len(self.streams) - 1)
        left, right = self.streams[at - 1], self.streams[at]
        share = max(0.0, (streams - left) / (right - left))
        return 1e-3 * (self.passes_ms[at - 1] + share * (self.passes_ms[at] - self.passes_ms[at - 1]))


@dataclass(frozen=True, slots=True)
class Sizes:
    """Settings of a replica, as of `EngineConfig`."""

    cached_tokens: int = 8320
    max_running: int = 32
    max_waiting: int = 64
    max_pause_s: float = 0.040


@dataclass(slots=True)
class Served:
    """A call and what became of it."""

    call: Call
    replica: int = -1
    hit_tokens: int = 0
    left: float = 0.0
    """Prompt tokens to read."""
    first_s: float = -1.0
    end_s: float = -1.0
    refused: bool = False


@dataclass(slots=True)
class Prefixes:
    """What the cache has kept of ended requests: instructions, and what conversations say behind them; what
    was used last is at the end."""

    held: OrderedDict[tuple[str, int], int] = field(default_factory=OrderedDict)
    tokens: int = 0

    def hit(self, call: Call) -> int:
        """Leading tokens that are stored, whole pages; the last one of a prompt is always read."""
        found = 0
        for key in (("system", call.system), ("session", call.session)):
            if key not in self.held:
                break
            found += self.held[key]
            self.held.move_to_end(key)
        return min(found, call.prompt_tokens - 1) // PAGE * PAGE

    def store(self, call: Call, length: int, room: int) -> None:
        """The first `length` tokens of a call's text, its instructions among them."""
        self._put(("session", call.session), length - call.system_tokens)
        self._put(("system", call.system), call.system_tokens)
        self.shrink(room)

    def shrink(self, room: int) -> None:
        while self.tokens > max(0, room):
            self.tokens -= self.held.popitem(last=False)[1]

    def _put(self, key: tuple[str, int], tokens: int) -> None:
        self.tokens += tokens - self.held.pop(key, 0)
        self.held[key] = tokens


class Replica:
    """Time only moves forward: `advance` to a moment, then `add`, or ask when the next event is."""

    def __init__(self, number: int, costs: Costs, sizes: Sizes, ready_s: float = 0.0) -> None:
        self.number, self.costs, self.sizes, self.ready_s = number, costs, sizes, ready_s
        self.prefixes = Prefixes()
        self.held = 0
        """Tokens of requests that run and nobody can share, which nothing else may have."""
        self.now_s = ready_s
        self.busy_s = 0.0
        self._settled = 0.0
        """Tokens that a stream would have settled that ran from the start."""
        self._streams: list[tuple[float, int, Served]] = []
        self._prompts: deque[Served] = deque()
        self._waiting: deque[Served] = deque()
        self._count = 0

    @property
    def load(self) -> int:
        return len(self._streams) + len(self._prompts) + len(self._waiting)

    def add(self, served: Served) -> bool:
        """False: refused, for all places are taken."""
        if self.load >= self.sizes.max_running + self.sizes.max_waiting:
            return False
        self._waiting.append(served)
        self._admit()
        return True

    def _admit(self) -> None:
        while self._waiting and len(self._streams) + len(self._prompts) < self.sizes.max_running:
            call = self._waiting[0].call
            whole = call.prompt_tokens + call.answer_tokens
            if self.held + whole > self.sizes.cached_tokens and self.held:
                return
            served = self._waiting.popleft()
            served.hit_tokens = self.prefixes.hit(call)
            served.left = call.prompt_tokens - served.hit_tokens
            self.held += whole - served.hit_tokens
            self.prefixes.shrink(self._room)
            self._prompts.append(served)

    @property
    def _room(self) -> int:
        return self.sizes.cached_tokens - self.held

    def _rates(self) -> tuple[float, float]:
        """(tokens a second of each stream, prompt tokens a second)"""
        streams = len(self._streams)
        own_s = self.costs.pass_s(streams) if streams else 0.0
        if not self._prompts:
            return (self.costs.tokens_per_pass / own_s if streams else 0.0), 0.0
        whole_s = max(self.sizes.max_pause_s, 2 * own_s)
        return self.costs.tokens_per_pass / whole_s, (whole_s - own_s) / whole_s / (
            1e-3 * self.costs.prompt_token_ms
        )

    def next_s(self) -> float:
        """When something ends, as things are."""
        each, prompts = self._rates()
        soonest = float("inf")
        if self._streams and each:
            soonest = self.now_s + max(0.0, self._streams[0][0] - self._settled) / each
        if self._prompts:
            soonest = min(soonest, self.now_s + self._prompts[0].left / prompts)
        return soonest

    def advance(self, to_s: float) -> list[Served]:
        """Up to `to_s`; what ended meanwhile."""
        ended: list[Served] = []
        while (event_s := self.next_s()) <= to_s:
            self._run(event_s)
            if self._prompts and self._prompts[0].left <= 1e-6:
                self._begin(self._prompts.popleft())
            while self._streams and self._streams[0][0] <= self._settled + 1e-6:
                served = heapq.heappop(self._streams)[2]
                served.end_s = self.now_s
                call = served.call
                self.held -= call.answer_tokens
                self.prefixes.store(call, call.prompt_tokens + call.answer_tokens, self._room)
                ended.append(served)
            self._admit()
        self._run(to_s)
        return ended

    def _begin(self, served: Served) -> None:
        # The pass that reads the last of a prompt gives the first token; from then on others may share it.
        served.first_s = self.now_s
        self.held -= served.call.prompt_tokens - served.hit_tokens
        self.prefixes.store(served.call, served.call.prompt_tokens, self._room)
        self._count += 1
        heapq.heappush(self._streams, (self._settled + served.call.answer_tokens - 1, self._count, served))

    def _run(self, to_s: float) -> None:
        took = max(0.0, to_s - self.now_s)
        if self._streams or self._prompts:
            each, prompts = self._rates()
            self._settled += took * each
            if self._prompts:
                self._prompts[0].left -= took * prompts
            self.busy_s += took
        self.now_s = max(self.now_s, to_s)
