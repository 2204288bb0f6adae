"""How a request's penalties, bias and bans change the logits of one position, as sparse plain numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vermilion.types import Sampling

BAN = float("-inf")


@dataclass(frozen=True, slots=True)
class Adjustment:
    """For one token: a positive logit is divided by `repetition`, a negative one multiplied; then `add`."""

    token: int
    repetition: float
    add: float


@dataclass(frozen=True, slots=True, eq=False)
class Adjustments:
    """Many of them as columns, by ascending token, each token once."""

    tokens: NDArray[np.int64]
    repetition: NDArray[np.float64]
    add: NDArray[np.float64]

    @staticmethod
    def of(changes: Sequence[Adjustment]) -> Adjustments:
        return Adjustments(
            np.array([change.token for change in changes], np.int64),
            np.array([change.repetition for change in changes], np.float64),
            np.array([change.add for change in changes], np.float64),
        )


def needed(sampling: Sampling) -> bool:
    """Whether any position's logits can be changed at all."""
    return bool(
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.logit_bias
        or sampling.min_tokens
    )


def bans(tokens: Iterable[int]) -> Adjustments:
    """What forbids `tokens` and changes nothing else."""
    return Adjustments.of([Adjustment(token, 1.0, BAN) for token in sorted(set(tokens))])


class Penalties:
    """The adjustments of one answer, kept up with its tokens: a read costs what its history adds, and one
    scan of the vocabulary. Equal to `adjustments` over the same tokens."""

    def __init__(self, sampling: Sampling, prompt: Collection[int], vocab_size: int) -> None:
        self._sampling = sampling
        self._counts: Counter[int] = Counter()
        self._answer: list[int] = []
        self._repeats = set(prompt) if sampling.repetition_penalty != 1.0 else set()
        self._repetition_V = np.ones(vocab_size)
        self._add_V = np.zeros(vocab_size)
        self._changed_V = np.zeros(vocab_size, bool)
        self._settled: Adjustments | None = None
        for token in {*self._repeats, *sampling.logit_bias}:
            self._set(token, 0)

    def follow(self, answer: Sequence[int]) -> None:
        """`answer`: the settled tokens; what was settled may have been taken back since the last call."""
        known = len(self._answer)
        if list(answer[:known]) != self._answer:
            for token in self._counts:
                self._set(token, 0)
            self._counts.clear()
            self._answer, self._settled, known = [], None, 0
        for token in answer[known:]:
            self._answer.append(token)
            self._counts[token] += 1
            self._set(token, self._counts[token])
            self._settled = None

    def at(self, history: Sequence[int], banned: Iterable[int]) -> Adjustments:
        """What changes at a position behind the answer and `history`."""
        more, bans = Counter(history), tuple(banned)
        if not more and not bans and self._settled is not None:
            return self._settled
        for token, count in more.items():
            self._set(token, self._counts[token] + count)
        for token in bans:
            self._repetition_V[token], self._add_V[token], self._changed_V[token] = 1.0, BAN, True
        tokens = np.flatnonzero(self._changed_V)
        found = Adjustments(tokens, self._repetition_V[tokens], self._add_V[tokens])
        for token in {*more, *bans}:
            self._set(token, self._counts[token])
        if not more and not bans:
            self._settled = found
        return found

    def _set(self, token: int, count: int) -> None:
        """The change of a token that was used `count` times."""
        sampling = self._sampling
        used = sampling.presence_penalty + sampling.frequency_penalty * count if count else 0.0
        repeated = sampling.repetition_penalty != 1.0 and (count > 0 or token in self._repeats)
        self._repetition_V[token] = sampling.repetition_penalty if repeated else 1.0
        self._add_V[token] = sampling.logit_bias.get(token, 0.0) - used
        self._changed_V[token] = repeated or bool(used) or token in sampling.logit_bias


def adjustments(
    sampling: Sampling,
    prompt: Collection[int],
    answer: Mapping[int, int],
    history: Sequence[int],
    banned: Iterable[int],
) -> list[Adjustment]:
    """The same in one go: the oracle. `answer` counts the settled answer, `history` lists what stands between
    it and the position.

    Repetition looks at prompt and answer (CTRL, arXiv 1909.05858), presence and frequency at the answer
    alone (as OpenAI defines them).
    """
    counts = Counter(answer)
    counts.update(history)
    changed: dict[int, tuple[float, float]] = {}
    if sampling.repetition_penalty != 1.0:
        for token in {*prompt, *counts}:
            changed[token] = (sampling.repetition_penalty, 0.0)
    if sampling.presence_penalty or sampling.frequency_penalty:
        for token, count in counts.items():
            repetition, add = changed.get(token, (1.0, 0.0))
            add -= sampling.presence_penalty + sampling.frequency_penalty * count
            changed[token] = (repetition, add)
    for token, bias in sampling.logit_bias.items():
        repetition, add = changed.get(token, (1.0, 0.0))
        changed[token] = (repetition, add + bias)
    for token in banned:
        changed[token] = (1.0, BAN)
    return [Adjustment(token, *change) for token, change in sorted(changed.items())]
