"""How much to draft: the expected number of accepted tokens against what the rows cost.

Verifying a draft that is accepted with probability p gains p tokens. Its row makes the step longer, and in
that time steps without drafts would have settled some tokens as well: that is the row's price. A draft is
worth its row while p exceeds the price (as DSpark's scheduler decides, DeepSpec 2026; here the costs are
measured). Text never depends on it: only `lossless` decoding is budgeted.
"""

from __future__ import annotations

import math
import operator
import sys
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Literal

Source = Literal["denoiser", "drafter", "lookup", "existing"]
"""Where drafts come from: guesses of the model's denoiser or of the drafter beside it, earlier text of the
request, text that is to be edited."""

_PRIORS: Mapping[Source, float] = {"denoiser": 0.7, "drafter": 0.7, "lookup": 0.6, "existing": 0.9}
"""How often a draft behind a right one is right, until a request's own drafts tell."""
_COPIED: tuple[Source, ...] = ("lookup", "existing")
MAX_CHANCE = 0.98
"""No draft counts as certain, so that a long run never looks free."""
_FORGETTING = 0.9
"""Weight that an observation keeps after the next one: about the last ten drafts count."""
MARGIN = 1.3
"""By how much a gain has to exceed its price: chances are estimates, and steps with good drafts settle more
than one token a stream, which the time is taken from."""
_PACE_SHARE, _SHAPE_SHARE = 0.2, 0.05
"""Weights of one step's time in what is known of the machine's pace and of the curve."""
_HOST_SHARE = 0.2
"""Weight of one measurement in what is known of the drafter's passes and of a grammar's masks."""
_READING_SHARE, _MAX_READING = 0.3, 16.0
"""Weight of one step that reads a prompt, and most that it may take over the curve: the embedded model's rows
take six times as long behind 8,000 tokens as behind 256, where the curve is measured."""
_MAX_OFF = 2.0
"""A step that took longer than this many times what was expected was interrupted."""
_RECOVERY = 0.97
"""Share of the observations that a pass without drafts leaves: after a while drafting is tried again."""
_SHARED_FORGETTING, _SHARED_RECOVERY = 0.98, 0.99
"""Both, of what requests know of each other's drafts."""


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
        self.trust = {constrained: Acceptance(1.0, shared=True) for constrained in (False, True)}
        """See `DraftRecord`, of requests without and with a grammar."""
        self.mask_ms = 0.0
        """What the base's row behind a draft takes besides under a grammar, for the tokens allowed there."""
        self._draw(ms)

    def _draw(self, ms: Sequence[float]) -> None:
        self.ms = tuple(accumulate(ms, max))
        self._by_rows = [self.ms[0]] * (self.rows[0] + 1)
        for (low, low_ms), (high, high_ms) in pairwise(zip(self.rows, self.ms, strict=True)):
            self._slope = (high_ms - low_ms) / (high - low)
            self._by_rows += [low_ms + self._slope * (count + 1) for count in range(high - low)]

    def at(self, rows: int) -> float:
        """Interpolated; past the last measurement the curve goes on as steeply as it ended."""
        known = len(self._by_rows) - 1
        if rows <= known:
            return self._by_rows[rows]
        return self._by_rows[known] + self._slope * (rows - known)

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
        bend = _SHAPE_SHARE * (off / self._pace - 1)
        right = min(max(1, bisect_left(self.rows, rows)), len(self.rows) - 1)
        low, high = self.rows[right - 1], self.rows[right]
        share = min(1.0, max(0.0, (rows - low) / (high - low)))
        changed = list(self.ms)
        changed[right - 1] *= 1 + (1 - share) * bend
        changed[right] *= 1 + share * bend
        if noisy:
            self.noisy_row_ms *= 1 + bend
        self._draw(changed)


@dataclass(frozen=True, slots=True)
class DraftBudget:
    """What drafts cost in one step."""

    costs: RowCosts
    rows: int
    """Rows of the step so far: every request's own, prefill, and the drafts that were planned before."""
    streams: int
    """Requests that the step brings on by at least one token."""
    constrained: bool = False
    """Whether the request that is to draft keeps to a grammar."""

    def price(self, added: int, noisy: int = 0) -> float:
        """Tokens that steps without drafts settle in the time that `added` more rows take, `noisy` of them
        through the denoiser; times the margin.

        Those are steps of one row a stream: a step that also reads prompts takes longer for each token.
        """
        longer = self.costs.at(self.rows + added) - self.costs.at(self.rows)
        longer += noisy * self.costs.noisy_row_ms
        if self.constrained:
            longer += (added - noisy) * self.costs.mask_ms
        return MARGIN * self.streams * longer / self.costs.at(self.streams)

    def drafter_price(self, rows: int) -> float:
        """The same of the time that the drafter takes for this many rows of one stream; the streams of a step
        share its passes."""
        longer = self.costs.asking_ms[self.constrained] / self.streams + self.costs.drafter_ms[1] * rows
        return MARGIN * self.streams * longer / self.costs.at(self.streams)

    @property
    def hopeless(self) -> bool:
        """Whether not even a draft that is almost certain is worth its row."""
        return self.price(1) >= MAX_CHANCE

    def plus(self, rows: int) -> DraftBudget:
        return replace(self, rows=self.rows + rows)

    def under(self, grammar: object) -> DraftBudget:
        """The same for a request with this grammar, or None."""
        return self if grammar is None else replace(self, constrained=True)


def worthwhile(chances: Sequence[float], budget: DraftBudget) -> int:
    """How many of the drafts to verify, likeliest first: as many as make the expected gain largest."""
    best, best_gain, expected = 0, 0.0, 0.0
    if _too_dear(chances, budget):
        return 0
    for count, chance in enumerate(chances, 1):
        expected += chance
        gain = expected - budget.price(count)
        if gain > best_gain:
            best, best_gain = count, gain
    return best


def _too_dear(chances: Sequence[float], budget: DraftBudget) -> bool:
    """Whether not even the first is worth its row. With many streams that is so for most requests, and
    weighing all counts for each of them took the host 2 ms a step."""
    return not chances or budget.price(1) >= chances[0]


def gain_of(chances: Sequence[float], budget: DraftBudget) -> float:
    """Expected tokens, less their price, of verifying as many drafts as are worthwhile."""
    count = worthwhile(chances, budget)
    return sum(chances[:count]) - budget.price(count) if count else 0.0


def worthwhile_guesses(by_depth: Sequence[float], budget: DraftBudget) -> int:
    """How many positions a denoise pass should guess: as many as make what their verification in the next
    pass is expected to gain, less what the denoiser's rows cost in this one, largest. 0: none is worth it.

    `by_depth` are the chances that the first 1, 2, ... guesses are all accepted. A canvas has one row more
    than it guesses, for its anchor.
    """
    best, best_gain = 0, 0.0
    if _too_dear(by_depth, budget):
        return 0
    for count in range(1, len(by_depth) + 1):
        gain = gain_of(by_depth[:count], budget) - budget.price(count + 1, noisy=count + 1)
        if gain > best_gain:
            best, best_gain = count, gain
    return best


def worthwhile_drafts(by_depth: Sequence[float], budget: DraftBudget) -> int:
    """As `worthwhile_guesses` for a drafter: its rows are not the base's, and it guesses from its first."""
    best, best_gain = 0, 0.0
    if _too_dear(by_depth, budget):
        return 0
    for count in range(1, len(by_depth) + 1):
        gain = gain_of(by_depth[:count], budget) - budget.drafter_price(count)
        if gain > best_gain:
            best, best_gain = count, gain
    return best


class Acceptance:
    """How often one request's drafts were accepted lately: a mean with a prior, new drafts weigh most."""

    def __init__(self, prior: float, strength: float = 2.0, *, shared: bool = False) -> None:
        self.prior = prior
        self.strength = strength
        self._forgetting = _SHARED_FORGETTING if shared else _FORGETTING
        self._recovery = _SHARED_RECOVERY if shared else _RECOVERY
        self._accepted = 0.0
        self._expected = 0.0

    @property
    def rate(self) -> float:
        """Accepted drafts per expected one; per draft where each is noted with an expectation of one."""
        return (self._accepted + self.prior * self.strength) / (self._expected + self.strength)

    def note(self, accepted: float, expected: float = 1.0) -> None:
        """`accepted` of `expected` drafts were right."""
        self._accepted = self._accepted * self._forgetting + accepted
        self._expected = self._expected * self._forgetting + expected

    def rest(self) -> None:
        """A pass went by without drafts: trust the prior a little more again."""
        self._accepted *= self._recovery
        self._expected *= self._recovery


class DraftRecord:
    """What one request's drafts have been worth so far, by where they came from."""

    def __init__(self) -> None:
        self.drafted: Counter[str] = Counter()
        """Drafts that were verified."""
        self.accepted: Counter[str] = Counter()
        self._by_depth: list[Acceptance] = []
        """Of guessed drafts at each depth of a tree, behind accepted ones."""
        self._certainty = Acceptance(_PRIORS["denoiser"])
        """Probability of the tokens that the base chose: where it is sure, drafts tend to be right."""
        self._calibration = Acceptance(1.0)
        """Accepted drafts over what their own probabilities promised."""
        self.trust: Acceptance | None = None
        """Accepted guesses over what the base's certainty promised, shared with requests alike: most answers
        end before their own drafts have told."""
        self._copied = {source: Acceptance(rate) for source, rate in _PRIORS.items()}

    def run_chances(self, source: Source, count: int) -> list[float]:
        """For each position of a run copied from text, the chance that all up to it are right."""
        rate = min(self._copied[source].rate, MAX_CHANCE)
        return [rate ** (k + 1) for k in range(count)]

    def tree_chances(self, logprobs: Sequence[float]) -> list[float]:
        """Of drafted paths, from the joint log-probabilities that the denoiser gave them."""
        ratio = self._calibration.rate
        return [min(MAX_CHANCE, ratio * math.exp(logprob)) for logprob in logprobs]

    def guess_chances(self, count: int) -> list[float]:
        """That the first 1, 2, ... guesses of a denoise pass will all be accepted."""
        for acceptance in self._by_depth:
            acceptance.prior = self._prior
        rates = [self._at_depth(depth).rate for depth in range(count)]
        return list(accumulate(rates, operator.mul))

    def note(self, source: Source, depths: Sequence[int], logprobs: Sequence[float], accepted: int) -> None:
        """Of drafts with these depths and log-probabilities the first `accepted` depths were right."""
        self.drafted[source] += len(depths)
        self.accepted[source] += accepted
        tried = min(accepted, max(depths)) + 1
        if source in _COPIED:
            self._copied[source].note(accepted, tried)
            return
        for depth in range(tried):
            self._note_guess(depth, float(depth < accepted))
        self._calibration.note(accepted, math.fsum(math.exp(logprob) for logprob in logprobs))

    def note_chosen(self, logprob: float) -> None:
        """The base chose a token of this log-probability."""
        self._certainty.note(math.exp(logprob))

    def note_useless(self) -> None:
        """Guesses were asked for, and none could be a draft."""
        self._note_guess(0, 0.0)

    def rest(self, source: Source) -> None:
        """A pass went by in which drafts of this source could have been asked for and were not."""
        guessed = [*self._by_depth, self._calibration, *([self.trust] if self.trust else [])]
        for acceptance in [self._copied[source]] if source in _COPIED else guessed:
            acceptance.rest()

    @property
    def _prior(self) -> float:
        certainty = self._certainty.rate
        return min(MAX_CHANCE, self.trust.rate * certainty) if self.trust else certainty

    def _note_guess(self, depth: int, accepted: float) -> None:
        self._at_depth(depth).note(accepted)
        if self.trust:
            self.trust.note(accepted, self._certainty.rate)

    def _at_depth(self, depth: int) -> Acceptance:
        while len(self._by_depth) <= depth:
            self._by_depth.append(Acceptance(self._prior))
        return self._by_depth[depth]
