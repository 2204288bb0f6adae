"""How much to draft: the expected number of accepted tokens against what the rows cost.

Verifying a draft that is accepted with probability p gains p tokens. Its row makes the step longer, and in
that time steps without drafts would have settled some tokens as well: that is the row's price. A draft is
worth its row while p exceeds the price (as DSpark's scheduler decides, DeepSpec 2026; here the costs are
measured). Text never depends on it: only `lossless` decoding is budgeted.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from vermilion.frozen import frozen

_HOPELESS = 0.75
"""Cost of a row from which on the little that an almost certain draft would gain is not worth looking for."""
_PACE_SHARE, _SHAPE_SHARE = 0.2, 0.05
"""Weights of one step's time in what is known of the machine's pace and of the curve."""
_UNSEEN_STEPS, _MAX_SHAPE_SHARE = 64, 0.5
"""After so many steps without any of as many rows the next one counts more, up to this weight."""
_DOUBT, _DEAR, _MAX_DOUBTED = 0.998, 1.3, 4
"""Share of their cost that such steps are believed to have with each more step, while that is so many times
the cost of the next smaller ones; up to so many rows."""
_DRAWN_ANEW = 0.005
"""By how much a point of the curve moves before the costs between points are worked out again."""
_HOST_SHARE = 0.2
"""Weight of one measurement in what is known of the drafter's passes and of a grammar's masks."""
_READING_SHARE, _MAX_READING = 0.3, 16.0
"""Weight of one step that reads a prompt, and most that it may take over the curve: the embedded model's rows
take six times as long behind 8,000 tokens as behind 256, where the curve is measured."""
_MAX_OFF = 2.0
"""A step that took longer than this many times what was expected was interrupted."""


class RowCosts:
    """Milliseconds of one forward by its number of rows, as measured on this machine and model."""

    def __init__(
        self,
        rows: Sequence[int],
        ms: Sequence[float],
        noisy_row_ms: float = 0.0,
        drafter_ms: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """`rows` rise, at least two; `noisy_row_ms` is what a row costs besides for the denoiser's adapter;
        `drafter_ms` what a pass of the drafter costs, and what each of its rows adds.

        Measurements are noisy, but more rows never cost less: a point below an earlier one is raised to it.
        """
        self.rows = tuple(rows)
        self.noisy_row_ms = max(0.0, noisy_row_ms)
        self.drafter_ms = (max(0.0, drafter_ms[0]), max(0.0, drafter_ms[1]))
        self._pace = 1.0
        """What steps take now over what the curve says."""
        self._reading = 1.0
        """What steps that read prompts take besides: the longer the prompt, the more its rows look at."""
        self.asking_ms = {False: self.drafter_ms[0], True: self.drafter_ms[0]}
        """What asking the drafter takes before any row, host work included, without and with a grammar. More
        than its passes at load, which found their weights in the caches."""
        self.mask_ms = 0.0
        """What the base's row behind a draft takes besides under a grammar, for the tokens allowed there."""
        self._steps, self._seen = 0, [0] * len(self.rows)
        """Of each point when a step last told of it."""
        self._draw(ms)

    def _draw(self, ms: Sequence[float]) -> None:
        self._points = list(accumulate(ms, max))
        self.ms = tuple(self._points)
        self._by_rows = [self.ms[0]] * (self.rows[0] + 1)
        for (low, low_ms), (high, high_ms) in pairwise(zip(self.rows, self.ms, strict=True)):
            self._slope = (high_ms - low_ms) / (high - low)
            self._by_rows += [low_ms + self._slope * (count + 1) for count in range(high - low)]

    def at(self, rows: float) -> float:
        """Interpolated; past the last measurement the curve goes on as steeply as it ended."""
        known = len(self._by_rows) - 1
        if rows >= known:
            return self._by_rows[known] + self._slope * (rows - known)
        whole = int(rows)
        low = self._by_rows[whole]
        return low if whole == rows else low + (rows - whole) * (self._by_rows[whole + 1] - low)

    def within(self, ms: float) -> int:
        """Most rows of a forward that takes `ms` and also reads prompts, at the machine's pace of now."""
        ms /= self._pace * self._reading
        known = len(self._by_rows) - 1
        if ms < self._by_rows[known]:
            return max(0, bisect_right(self._by_rows, ms) - 1)
        more = (ms - self._by_rows[known]) / self._slope if self._slope else math.inf
        return known + int(min(more, sys.maxsize))

    def note_reading(self, rows: int, ms: float) -> None:
        """A step of so many rows, some of them of prompts, took `ms`."""
        off = ms / (self.at(rows) * self._pace)
        self._reading += _READING_SHARE * (min(_MAX_READING, max(1.0, off)) - self._reading)

    def note_asking(self, rows: int, constrained: bool, ms: float) -> None:
        """Asking the drafter for so many rows took `ms`, host work included."""
        each, known = self.drafter_ms[1] * rows, self.asking_ms[constrained]
        ms = min(ms / self._pace, _MAX_OFF * (known + each))
        self.asking_ms[constrained] += _HOST_SHARE * (max(0.0, ms - each) - known)

    def note_masks(self, count: int, seconds: float) -> None:
        """Finding the tokens that a grammar allows took so long at `count` places."""
        if count:
            self.mask_ms += _HOST_SHARE * (1e3 * seconds / count / self._pace - self.mask_ms)

    def note(self, rows: int, noisy: int, ms: float) -> None:
        """A step of so many rows took `ms`, host work included: follow what steps really cost.

        Prices depend on the curve's shape alone, so how fast the machine happens to be is taken out first.
        """
        off = ms / (self.at(rows) + noisy * self.noisy_row_ms)
        off = min(_MAX_OFF, max(1 / _MAX_OFF, off))
        self._pace += _PACE_SHARE * (off - self._pace)
        self._steps += 1
        right = min(max(1, bisect_left(self.rows, rows)), len(self.rows) - 1)
        low, high = self.rows[right - 1], self.rows[right]
        share = min(1.0, max(0.0, (rows - low) / (high - low)))
        for at, part in ((right - 1, 1 - share), (right, share)):
            if part:
                unseen = (self._steps - self._seen[at]) / _UNSEEN_STEPS
                weight = min(_MAX_SHAPE_SHARE, _SHAPE_SHARE * max(1.0, unseen))
                self._points[at] *= 1 + part * weight * (off / self._pace - 1)
                self._seen[at] = self._steps
        if noisy:
            self.noisy_row_ms *= 1 + _SHAPE_SHARE * (off / self._pace - 1)
        self._doubt(right + 1 if share else right)
        if any(abs(self._points[at] / self.ms[at] - 1) > _DRAWN_ANEW for at in (right - 1, right)):
            self._draw(self._points)

    def _doubt(self, first: int) -> None:
        """Take dear steps of more rows than there were lately for a little cheaper. If others had the machine
        while they were measured, they would look too dear for any draft for ever, as no step would tell."""
        if first >= len(self.rows) or self.rows[first] > _MAX_DOUBTED:
            return
        least = _DEAR * self._points[first - 1]
        if self._points[first] > least and self._steps - self._seen[first] > _UNSEEN_STEPS:
            self._points[first] = max(least, self._points[first] * _DOUBT)
            self._draw(self._points)


@frozen
class DraftBudget:
    """What drafts cost in one step."""

    costs: RowCosts
    rows: int
    """Rows of the step so far: every request's own, prefill, and the drafts that were planned before."""
    streams: int
    """Requests that the step brings on by at least one token."""
    constrained: bool = False
    """Whether the request that is to draft keeps to a grammar."""

    def cost(self, added: float, noisy: int = 0) -> float:
        """Tokens that steps without drafts settle in the time that `added` more rows take, `noisy` of them
        through the denoiser.

        Those are steps of one row a stream: a step that also reads prompts takes longer for each token.
        """
        longer = self.costs.at(self.rows + added) - self.costs.at(self.rows)
        longer += noisy * self.costs.noisy_row_ms
        if self.constrained:
            longer += (added - noisy) * self.costs.mask_ms
        return self.streams * longer / self.costs.at(self.streams)

    def affordable(self, count: int, means: float) -> int:
        """As many of `count` rows as cost no more than `means`."""
        while count and self.cost(count) > means:
            count -= 1
        return count

    def denoiser_cost(self, guesses: int) -> float:
        """The same of the denoiser's rows for so many guesses: a canvas has one more, for its anchor."""
        return self.cost(guesses + 1, noisy=guesses + 1)

    def drafter_cost(self, guesses: int) -> float:
        """The same of the time that the drafter takes for so many guesses of one stream; the streams of a
        step share its passes."""
        longer = self.costs.asking_ms[self.constrained] / self.streams + self.costs.drafter_ms[1] * guesses
        return self.streams * longer / self.costs.at(self.streams)

    @property
    def hopeless(self) -> bool:
        """Whether rows are so dear that no draft is looked for, as with many streams."""
        return self.cost(1) >= _HOPELESS

    def plus(self, rows: int) -> DraftBudget:
        return DraftBudget(self.costs, self.rows + rows, self.streams, self.constrained)

    def under(self, grammar: object) -> DraftBudget:
        """The same for a request with this grammar, or None."""
        return self if grammar is None else DraftBudget(self.costs, self.rows, self.streams, True)


def worthwhile(chances: Sequence[float], budget: DraftBudget) -> int:
    """How many of the drafts to verify, likeliest first: as many as make the expected gain largest."""
    best, best_gain, expected, most = 0, 0.0, 0.0, sum(chances)
    # With many streams most requests draft nothing; weighing all counts for each took the host 2 ms a step.
    if not chances or budget.cost(1) >= chances[0]:
        return 0
    for count, chance in enumerate(chances, 1):
        expected += chance
        price = budget.cost(count)
        if expected - price > best_gain:
            best, best_gain = count, expected - price
        if most - price <= best_gain:
            break  # prices never fall
    return best


def gain_of(chances: Sequence[float], budget: DraftBudget) -> float:
    """Expected tokens, less their price, of verifying as many drafts as are worthwhile."""
    count = worthwhile(chances, budget)
    return sum(chances[:count]) - budget.cost(count) if count else 0.0


def worthwhile_guesses(
    yields: Sequence[tuple[float, float]],
    budget: DraftBudget,
    asking: Callable[[int], float],
    means: float = math.inf,
) -> tuple[int, float]:
    """How many positions to have guessed, and the expected gain: as many as make what their verification is
    expected to gain, less what guessing costs, largest, at a cost of no more than `means`; (0, 0) for none.

    `yields` are, of each position, the expected accepted tokens and the rows that verify them; `asking` is
    what it costs to have so many guessed.
    """
    best, best_gain, expected, rows = 0, 0.0, 0.0, 0.0
    for count, (accepted, taken) in enumerate(yields, 1):
        expected += accepted
        rows += taken
        cost = asking(count)
        if cost + budget.cost(rows) > means:
            break
        gain = expected - budget.cost(rows) - cost
        if gain > best_gain:
            best, best_gain = count, gain
    return best, best_gain
