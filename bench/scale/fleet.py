"""Replicas behind a router, more or fewer of them as the load asks."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from bench.scale.replicas import Costs, Replica, Served, Sizes
from bench.scale.traces import Call

Route = Callable[["Fleet", Call], Replica]


def at_random(fleet: Fleet, call: Call) -> Replica:
    return fleet.random.choice(fleet.ready())


def least_queue(fleet: Fleet, call: Call) -> Replica:
    return min(fleet.ready(), key=lambda each: (each.load, fleet.random.random()))


def prefix_aware(fleet: Fleet, call: Call) -> Replica:
    """The replica that answered this conversation last, or one that has its instructions, unless it has
    `slack` more to do than the least busy."""
    ready = fleet.ready()
    least = min(each.load for each in ready)
    by_number = {each.number: each for each in ready}
    known = [fleet.homes.get(("session", call.session), -1), *fleet.systems.get(call.system, ())]
    for number in known:
        if number in by_number and by_number[number].load <= least + fleet.slack:
            return by_number[number]
    return least_queue(fleet, call)


ROUTES: dict[str, Route] = {"random": at_random, "least queue": least_queue, "prefix-aware": prefix_aware}


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many replicas there are. `target`: requests in each that are aimed at; 0 keeps their number."""

    least: int = 1
    most: int = 1
    target: float = 0.0
    start_s: float = 60.0
    """From the decision to a replica that answers: a machine, an image, the model."""
    look_every_s: float = 15.0
    fewer_after_s: float = 300.0
    """Only what was too many for so long goes."""


@dataclass(slots=True)
class Outcome:
    served: list[Served]
    replica_hours: float
    sizes: list[tuple[float, int]] = field(default_factory=list)
    """(time, replicas), at every look."""

    def first_text_ms(self, share: float) -> float:
        """Quantile of the time to the first token."""
        values = sorted(1e3 * (each.first_s - each.call.at_s) for each in self.answered)
        return values[min(len(values) - 1, int(share * len(values)))]

    @property
    def answered(self) -> list[Served]:
        return [each for each in self.served if each.end_s >= 0]

    @property
    def refused(self) -> float:
        return sum(each.refused for each in self.served) / len(self.served)

    @property
    def hits(self) -> float:
        """Share of prompt tokens that were cached."""
        return sum(each.hit_tokens for each in self.answered) / sum(
            each.call.prompt_tokens for each in self.answered
        )


class Fleet:
    def __init__(self, costs: Costs, sizes: Sizes, scaling: Scaling, seed: int = 0) -> None:
        self.costs, self.sizes, self.scaling = costs, sizes, scaling
        self.random = random.Random(seed)
        self.slack = 4
        self.now_s = 0.0
        self.replicas = [Replica(number, costs, sizes) for number in range(scaling.least)]
        self.leaving: list[Replica] = []
        self.homes: dict[tuple[str, int], int] = {}
        self.systems: dict[int, list[int]] = {}
        self._made = scaling.least
        self._lifetimes_s: list[float] = []
        self._quiet_since_s = 0.0

    def ready(self) -> list[Replica]:
        return [each for each in self.replicas if each.ready_s <= self.now_s] or self.replicas[:1]

    def run(self, calls: Sequence[Call], route: str) -> Outcome:
        """All calls through the router, until the last has ended."""
        served, sizes = [], []
        look_s = 0.0
        for call in calls:
            while self.scaling.target and look_s <= call.at_s:
                self._advance(look_s)
                self._scale()
                sizes.append((look_s, len(self.ready())))
                look_s += self.scaling.look_every_s
            self._advance(call.at_s)
            one = Served(call)
            served.append(one)
            replica = ROUTES[route](self, call)
            one.replica = replica.number
            one.refused = not replica.add(one)
            self._note(call, replica.number)
        self._advance(float(calls[-1].at_s) + 3600.0)
        end_s = max((each.end_s for each in served), default=0.0)
        lived = sum(self._lifetimes_s) + sum(end_s - each.ready_s for each in self.replicas)
        return Outcome(served, lived / 3600, sizes)

    def _advance(self, to_s: float) -> None:
        self.now_s = to_s
        for replica in [*self.replicas, *self.leaving]:
            if replica.next_s() <= to_s or replica.load:
                replica.advance(to_s)
            else:
                replica.now_s = max(replica.now_s, to_s)
        gone = [each for each in self.leaving if not each.load]
        self._lifetimes_s += [to_s - each.ready_s for each in gone]
        self.leaving = [each for each in self.leaving if each.load]

    def _note(self, call: Call, number: int) -> None:
        self.homes["session", call.session] = number
        where = self.systems.setdefault(call.system, [])
        if number not in where:
            where.append(number)

    def _scale(self) -> None:
        s = self.scaling
        load = sum(each.load for each in self.replicas)
        wanted = min(s.most, max(s.least, math.ceil(load / s.target)))
        if wanted >= len(self.replicas):
            self._quiet_since_s = self.now_s
        for _ in range(wanted - len(self.replicas)):
            self.replicas.append(Replica(self._made, self.costs, self.sizes, self.now_s + s.start_s))
            self._made += 1
        if self.now_s - self._quiet_since_s >= s.fewer_after_s and wanted < len(self.replicas):
            # One at a time, the newest, whose cache is the poorest; it ends what it has begun.
            self.leaving.append(self.replicas.pop())
            self._quiet_since_s = self.now_s


def spread(values: Iterable[float]) -> tuple[float, float]:
    """(mean, half the range)"""
    listed = list(values)
    return sum(listed) / len(listed), (max(listed) - min(listed)) / 2
