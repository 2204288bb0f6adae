"""How much to draft: the expected number of accepted tokens against what the rows cost. Pure functions.

Verifying a draft that is accepted with probability p gains p tokens. Its row makes the step longer, and in that
time the same step without drafts would have settled some tokens as well: that is the row's price. A draft is
worth its row while p exceeds the price (the rule of DSpark's scheduler, DeepSpec 2026, with a measured curve in
place of a model of the hardware). Text never depends on any of it: only `lossless` decoding is budgeted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_CHANCE = 0.98
"""No draft counts as certain, so that a long run never looks free."""
_FORGETTING = 0.9
"""Weight that an observation keeps after the next one: estimates follow the text's last ten drafts or so."""
_RECOVERY = 0.97
"""Share of the observations that a pass without drafts leaves, so that drafting is tried again after a while."""


@dataclass(frozen=True, slots=True)
class RowCosts:
    """Milliseconds of one forward by its number of rows, as measured on this machine and model."""

    rows: tuple[int, ...]
    """Rising, at least two."""
    ms: tuple[float, ...]
    noisy_row_ms: float = 0.0
    """What a noisy row costs besides, for the denoiser's adapter."""

    def at(self, rows: int) -> float:
        """Interpolated; past the last measurement the curve goes on as steeply as it ended."""
        points = list(zip(self.rows, self.ms, strict=True))
        for (low, low_ms), (high, high_ms) in zip(points, points[1:], strict=False):
            if rows <= high or high == self.rows[-1]:
                share = (max(rows, self.rows[0]) - low) / (high - low)
                return low_ms + share * (high_ms - low_ms)
        raise ValueError("a cost curve needs two points")

    @classmethod
    def measured(cls, rows: Sequence[int], ms: Sequence[float], noisy_row_ms: float = 0.0) -> RowCosts:
        """From noisy measurements: more rows never cost less."""
        rising = [max(ms[: i + 1]) for i in range(len(ms))]
        return cls(tuple(rows), tuple(rising), max(0.0, noisy_row_ms))


@dataclass(frozen=True, slots=True)
class DraftBudget:
    """What drafts cost in one step."""

    costs: RowCosts
    rows: int
    """Rows of the step so far: every request's own, prefill, and the drafts that were planned before."""
    streams: int
    """Requests that the step brings on by at least one token."""

    def price(self, added: int, noisy: int = 0) -> float:
        """Tokens that the step without them would settle in the time that `added` more rows take, `noisy` of
        them through the denoiser."""
        before = self.costs.at(self.rows)
        longer = self.costs.at(self.rows + added) - before + noisy * self.costs.noisy_row_ms
        return self.streams * longer / before

    def plus(self, rows: int) -> DraftBudget:
        return DraftBudget(self.costs, self.rows + rows, self.streams)


def worthwhile(chances: Sequence[float], budget: DraftBudget) -> int:
    """How many of the drafts to verify, likeliest first: as many as make the expected gain largest."""
    best, best_gain, expected = 0, 0.0, 0.0
    for count, chance in enumerate(chances, 1):
        expected += chance
        gain = expected - budget.price(count)
        if gain > best_gain:
            best, best_gain = count, gain
    return best


def gain_of(chances: Sequence[float], budget: DraftBudget) -> float:
    """Expected tokens, less their price, of verifying as many drafts as are worthwhile."""
    count = worthwhile(chances, budget)
    return sum(chances[:count]) - budget.price(count) if count else 0.0


def worthwhile_guesses(by_depth: Sequence[float], most: int, budget: DraftBudget) -> int:
    """How many positions a denoise pass should guess, at most `most`: those whose verification in the next
    pass is expected to gain more than the denoiser's rows cost in this one. 0: draft nothing.

    `by_depth` are the chances that the first 1, 2, ... guesses are all accepted. A canvas has one row more than
    it guesses, for its anchor.
    """
    best, best_gain = 0, 0.0
    for count in range(1, min(most, len(by_depth)) + 1):
        gain = gain_of(by_depth[:count], budget) - budget.price(count + 1, noisy=count + 1)
        if gain > best_gain:
            best, best_gain = count, gain
    return best


class Acceptance:
    """How often one request's drafts were accepted lately: a mean with a prior, newer drafts weighing more."""

    def __init__(self, prior: float, strength: float = 2.0) -> None:
        self.prior = prior
        self.strength = strength
        self._accepted = 0.0
        self._expected = 0.0

    @property
    def rate(self) -> float:
        """Accepted drafts per expected one; per draft where each is noted with an expectation of one."""
        return (self._accepted + self.prior * self.strength) / (self._expected + self.strength)

    def note(self, accepted: float, expected: float = 1.0) -> None:
        """`accepted` of `expected` drafts were right."""
        self._accepted = self._accepted * _FORGETTING + accepted
        self._expected = self._expected * _FORGETTING + expected

    def rest(self) -> None:
        """A pass went by without drafts: trust the prior a little more again."""
        self._accepted *= _RECOVERY
        self._expected *= _RECOVERY


def run_chances(rate: float, count: int) -> list[float]:
    """Chances of the positions of a run copied from text, each right with probability `rate` behind a right
    one."""
    rate = min(rate, MAX_CHANCE)
    return [rate ** (k + 1) for k in range(count)]


def tree_chances(logprobs: Sequence[float], ratio: float) -> list[float]:
    """Calibrated chances of drafted paths: the denoiser's own, times what it was off by so far."""
    return [min(MAX_CHANCE, ratio * math.exp(logprob)) for logprob in logprobs]
