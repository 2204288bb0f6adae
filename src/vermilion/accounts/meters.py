"""Limits as arithmetic: leaky buckets for what a minute allows, running sums for grants and budgets.

A bucket of a limit of N a minute holds N and leaks N / 60 each second. A meter that has stood idle is
empty; so the most that passes in any minute is N at once and N more as it leaks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vermilion.accounts.clock import MINUTE_US, day_of
from vermilion.accounts.keys import RateLimits
from vermilion.types import Usage


@dataclass(frozen=True, slots=True)
class Meter:
    """The row of one key or organisation in `meters`."""

    subject: str
    requests: float = 0.0
    tokens: float = 0.0
    """Levels of the two buckets `at_us`."""
    at_us: int = 0
    granted_tokens: int = 0
    used_tokens: int = 0
    month: str = ""
    month_spent: int = 0
    """Picodollars spent in `month`."""

    @property
    def free_tokens(self) -> int:
        """What is left of the grants."""
        return max(0, self.granted_tokens - self.used_tokens)

    def at(self, now_us: int, limits: RateLimits) -> Meter:
        """The same later: leaked, and with a new month's budget. A clock that goes back changes nothing."""
        passed_us = max(0, now_us - self.at_us)
        month = day_of(now_us)[:7]
        return Meter(
            self.subject,
            _leaked(self.requests, limits.requests_per_minute, passed_us),
            _leaked(self.tokens, limits.tokens_per_minute, passed_us),
            max(now_us, self.at_us),
            self.granted_tokens,
            self.used_tokens,
            max(month, self.month),
            self.month_spent if month <= self.month else 0,
        )

    def admitted(self, num_prompt_tokens: int) -> Meter:
        """With one more request, whose prompt counts at once and whose answer once it has settled."""
        return replace(self, requests=self.requests + 1, tokens=self.tokens + num_prompt_tokens)

    def settled(self, usage: Usage, num_counted: int, amount: int) -> Meter:
        """With what a request came to; `num_counted` tokens of it were counted when it was admitted."""
        used = usage.prompt_tokens + usage.completion_tokens
        return replace(
            self,
            tokens=max(0.0, self.tokens + used - num_counted),
            used_tokens=self.used_tokens + used,
            month_spent=self.month_spent + amount,
        )


def _leaked(level: float, limit: int | None, passed_us: int) -> float:
    # Without a limit nothing is counted, so that one set later starts from an empty bucket.
    return 0.0 if limit is None else max(0.0, level - limit * passed_us / MINUTE_US)


@dataclass(frozen=True, slots=True)
class Room:
    """What a bucket has left, for the headers. `reset_s` is when it will be empty."""

    limit: int
    remaining: int
    reset_s: float


def room(level: float, limit: int | None) -> Room | None:
    if limit is None:
        return None
    return Room(limit, max(0, math.floor(limit - level)), 60 * max(0.0, level) / limit)


def wait_s(level: float, limit: int, wanted: int) -> int | None:
    """Whole seconds until `wanted` more fit; 0 when they do, None when they never will."""
    if wanted > limit:
        return None
    over = level + wanted - limit
    return 0 if over <= 0 else max(1, math.ceil(60 * over / limit))


@dataclass(frozen=True, slots=True)
class Standing:
    """What a key has left, the tighter of its own limit and its organisation's; None where none limits."""

    requests: Room | None = None
    tokens: Room | None = None


def standing(limited: Sequence[tuple[RateLimits, Meter]]) -> Standing:
    """Of several limits that all hold."""
    return Standing(
        _tighter([room(meter.requests, limits.requests_per_minute) for limits, meter in limited]),
        _tighter([room(meter.tokens, limits.tokens_per_minute) for limits, meter in limited]),
    )


def _tighter(rooms: Sequence[Room | None]) -> Room | None:
    limiting = [one for one in rooms if one is not None]
    return min(limiting, key=lambda one: one.remaining, default=None)
