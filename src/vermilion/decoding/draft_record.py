"""What drafts have been worth: chances by where they come from, and an account of what they have gained."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

Source = Literal["denoiser", "drafter", "lookup", "existing"]
"""Where drafts come from: guesses of the model's denoiser or of the drafter beside it, earlier text of the
request, text that is to be edited."""

MAX_CHANCE = 0.98
"""No draft counts as certain, so that a long run never looks free."""
CREDIT = 4.0
"""Tokens that drafts of one kind may lose before they have gained any."""
INCOME = 0.01
"""Tokens a pass without drafts that the account gets back up to its credit: the price of trying again."""
MAX_BALANCE = 32.0
"""Most of what drafts gained that later ones may lose again."""
_PRIORS: Mapping[Source, float] = {"denoiser": 0.7, "drafter": 0.7, "lookup": 0.6, "existing": 0.9}
"""How often a draft behind a right one is right, until drafts tell."""
_COPIED: tuple[Source, ...] = ("lookup", "existing")
_STRENGTH = 8.0
"""How many observations weigh as much as what was known before."""
_FORGETTING, _SHARED_FORGETTING = 0.9, 0.99
"""Weight that an observation keeps after the next one: about the last ten drafts of a request count, and
the last hundred of all requests together."""
_RECOVERY, _SHARED_RECOVERY = 0.97, 0.99
"""Share of the observations that a pass without drafts leaves: after a while drafting is tried again."""


class Acceptance:
    """A mean of what was seen lately, in which a prior counts for a few observations."""

    def __init__(self, prior: float | Acceptance) -> None:
        """`prior`: a number, or the mean over all requests, which learns of every observation as well."""
        self._prior = prior
        self._forgetting = _FORGETTING if isinstance(prior, Acceptance) else _SHARED_FORGETTING
        self._recovery = _RECOVERY if isinstance(prior, Acceptance) else _SHARED_RECOVERY
        self._accepted = 0.0
        self._expected = 0.0

    @property
    def rate(self) -> float:
        """Accepted drafts per expected one; per draft where each is noted with an expectation of one."""
        prior = self._prior.rate if isinstance(self._prior, Acceptance) else self._prior
        return (self._accepted + prior * _STRENGTH) / (self._expected + _STRENGTH)

    def note(self, accepted: float, expected: float = 1.0) -> None:
        """`accepted` of `expected` drafts were right."""
        self._accepted = self._accepted * self._forgetting + accepted
        self._expected = self._expected * self._forgetting + expected
        if isinstance(self._prior, Acceptance):
            self._prior.note(accepted, expected)

    def rest(self) -> None:
        """A pass went by without drafts: trust the prior a little more again."""
        self._accepted *= self._recovery
        self._expected *= self._recovery
        if isinstance(self._prior, Acceptance):
            self._prior.rest()


class DraftAccount:
    """What drafts have gained less what they cost, in tokens that steps without drafts would have settled.

    Drafts may spend no more than the balance, so whatever was expected of them, all of them together never
    lose more than the credit and the income of the passes without any.
    """

    def __init__(self) -> None:
        self.balance = CREDIT

    def spend(self, tokens: float) -> None:
        self.balance -= tokens

    def earn(self, tokens: float) -> None:
        self.balance = min(MAX_BALANCE, self.balance + tokens)

    def rest(self) -> None:
        """A pass went by without drafts."""
        self.balance = max(self.balance, min(CREDIT, self.balance + INCOME))


class DraftRecord:
    """What one request's drafts have been worth so far, by where they came from."""

    def __init__(self, shared: DraftRecord | None = None) -> None:
        """`shared`: what is known of all requests alike, which learns from this one: most answers end before
        their own drafts have told."""
        self.drafted: Counter[str] = Counter()
        """Drafts that were verified."""
        self.accepted: Counter[str] = Counter()
        self._shared = shared
        self._by_depth: list[tuple[Acceptance, Acceptance]] = []
        """Of guesses by depth: how many are expected to be accepted, of those expected one position before;
        and how many rows they take."""
        self._calibration: Acceptance = Acceptance(shared._calibration if shared else 1.0)
        """Accepted drafts over what their own probabilities promised."""
        self._copied: dict[Source, Acceptance] = {
            source: Acceptance(shared._copied[source] if shared else _PRIORS[source]) for source in _COPIED
        }
        self._accounts: dict[bool, DraftAccount] = (
            shared._accounts if shared else {False: DraftAccount(), True: DraftAccount()}
        )
        """Of guesses and of copies, of all requests alike."""

    def account(self, source: Source) -> DraftAccount:
        """What its drafts may spend."""
        return self._accounts[source in _COPIED]

    def run_chances(self, source: Source, count: int) -> list[float]:
        """For each position of a run copied from text, the chance that all up to it are right."""
        rate = min(self._copied[source].rate, MAX_CHANCE)
        return [rate ** (k + 1) for k in range(count)]

    def tree_chances(self, logprobs: Sequence[float]) -> list[float]:
        """Of drafted paths, from the joint log-probabilities that their guesser gave them."""
        ratio = self._calibration.rate
        return [min(MAX_CHANCE, ratio * math.exp(logprob)) for logprob in logprobs]

    def least_logprob(self, chance: float) -> float:
        """The joint log-probability from which on drafted paths have this chance."""
        return math.log(chance / self._calibration.rate) if chance > 0 else -math.inf

    def yields(self, count: int) -> list[tuple[float, float]]:
        """Of each of the next `count` positions, were they guessed: tokens that are expected to be accepted
        there, and rows to verify them."""
        found: list[tuple[float, float]] = []
        expected = 1.0
        for depth in range(count):
            accepted, rows = self._at_depth(depth)
            expected *= accepted.rate
            found.append((expected, rows.rate))
        return found

    def note_guesses(self, guessed: int, depths: Sequence[int], chances: Sequence[float]) -> None:
        """Of `guessed` positions those drafts with these depths and chances were worth their rows.

        Chances tell more than which drafts were right in the end: they are no less true, and vary less.
        """
        expected, rows = [0.0] * guessed, [0.0] * guessed
        for depth, chance in zip(depths, chances, strict=True):
            expected[depth] += chance
            rows[depth] += 1
        before = 1.0
        for depth in range(guessed):
            accepted, taken = self._at_depth(depth)
            accepted.note(expected[depth], before)
            taken.note(rows[depth])
            before = expected[depth]
            if not before:
                break

    def note(self, source: Source, depths: Sequence[int], logprobs: Sequence[float], accepted: int) -> None:
        """Of drafts with these depths and log-probabilities the first `accepted` depths were right."""
        self.drafted[source] += len(depths)
        self.accepted[source] += accepted
        if source in _COPIED:
            self._copied[source].note(accepted, min(accepted, max(depths)) + 1)
        else:
            self._calibration.note(accepted, math.fsum(math.exp(logprob) for logprob in logprobs))

    def rest(self, source: Source) -> None:
        """A pass went by in which drafts of this source could have been asked for and were not."""
        self.account(source).rest()
        if source in _COPIED:
            self._copied[source].rest()
            return
        self._calibration.rest()
        for accepted, rows in self._by_depth:
            accepted.rest()
            rows.rest()

    def _at_depth(self, depth: int) -> tuple[Acceptance, Acceptance]:
        while len(self._by_depth) <= depth:
            shared = self._shared._at_depth(len(self._by_depth)) if self._shared else None
            accepted, rows = shared or (_PRIORS["drafter"], 1.0)
            self._by_depth.append((Acceptance(accepted), Acceptance(rows)))
        return self._by_depth[depth]
