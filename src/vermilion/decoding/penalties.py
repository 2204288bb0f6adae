"""How a request's penalties, bias and bans change the logits of one position, as sparse plain numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from vermilion.types import Sampling

BAN = float("-inf")


@dataclass(frozen=True, slots=True)
class Adjustment:
    """For one token: a positive logit is divided by `repetition`, a negative one multiplied; then `add`."""

    token: int
    repetition: float
    add: float


def needed(sampling: Sampling) -> bool:
    """Whether any position's logits can be changed at all."""
    return bool(
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.logit_bias
        or sampling.min_tokens
    )


def adjustments(
    sampling: Sampling,
    prompt: Collection[int],
    answer: Mapping[int, int],
    history: Sequence[int],
    banned: Iterable[int],
) -> list[Adjustment]:
    """`answer` counts the settled answer, `history` lists what stands between it and the position.

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
