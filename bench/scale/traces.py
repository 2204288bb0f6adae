"""Generated traffic: conversations whose every turn brings all that was said before, over a day or in bursts.

All of it follows from a seed. Times are seconds, lengths tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

Load = Callable[[float], float]
"""Conversations that begin in a second, by time."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request."""

    at_s: float
    session: int
    system: int
    """Which instructions the conversation opens with; conversations share them."""
    system_tokens: int
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """What conversations are like. The means of lengths are of geometric distributions."""

    systems: int = 20
    """Kinds of instructions; the k-th is used in proportion to 1 / k."""
    system_tokens: int = 300
    turns: float = 4.0
    message_tokens: float = 60.0
    answer_tokens: float = 150.0
    pause_s: float = 30.0
    """Between an answer and the next message, on average."""
    reading_s: float = 4.0
    """For an answer, which the trace cannot know: from a message to the next at the least."""
    longest: int = 4000
    """Tokens of a conversation, at which it ends."""

    @property
    def mean_prompt_tokens(self) -> float:
        return _mean(self, lambda call: call.prompt_tokens)

    @property
    def mean_answer_tokens(self) -> float:
        return _mean(self, lambda call: call.answer_tokens)


def constant(per_s: float) -> Load:
    return lambda at_s: per_s


def day(peak_per_s: float, trough: float = 0.15) -> Load:
    """A sine over 24 hours, least at the start, most at noon."""
    return lambda at_s: (
        peak_per_s * (trough + (1 - trough) * (0.5 - 0.5 * math.cos(2 * math.pi * at_s / 86_400)))
    )


def with_bursts(load: Load, every_s: float, length_s: float, times: float) -> Load:
    """Now and then as much again, `times` as much in all."""
    return lambda at_s: load(at_s) * (times if at_s % every_s < length_s else 1.0)


def calls(traffic: Traffic, load: Load, most_per_s: float, end_s: float, seed: int) -> list[Call]:
    """Every call before `end_s`, in order; `most_per_s` is no less than the load ever is."""
    random_ = random.Random(seed)
    weights = [1 / (k + 1) for k in range(traffic.systems)]
    made: list[Call] = []
    at_s, session = 0.0, 0
    while (at_s := at_s + random_.expovariate(most_per_s)) < end_s:
        if random_.random() < load(at_s) / most_per_s:  # thinning: a Poisson process whose rate varies
            system = random_.choices(range(traffic.systems), weights)[0]
            first = Call(at_s, session, system, traffic.system_tokens, 0, 0)
            made += (call for call in conversation(traffic, first, random_) if call.at_s < end_s)
            session += 1
    return sorted(made, key=lambda call: call.at_s)


def conversation(traffic: Traffic, first: Call, random_: random.Random) -> Iterator[Call]:
    at_s, length = first.at_s, first.system_tokens
    while True:
        length += _geometric(random_, traffic.message_tokens)
        answer = _geometric(random_, traffic.answer_tokens)
        if length + answer > traffic.longest:
            return
        yield replace(first, at_s=at_s, prompt_tokens=length, answer_tokens=answer)
        length += answer
        at_s += traffic.reading_s + random_.expovariate(1 / traffic.pause_s)
        if random_.random() < 1 / traffic.turns:
            return


def _geometric(random_: random.Random, mean: float) -> int:
    return 1 + int(random_.expovariate(1 / max(1e-9, mean - 1)))


def _mean(traffic: Traffic, of: Callable[[Call], int]) -> float:
    random_ = random.Random(0)
    first = Call(0.0, 0, 0, traffic.system_tokens, 0, 0)
    values = [of(call) for _ in range(4000) for call in conversation(traffic, first, random_)]
    return sum(values) / len(values)
