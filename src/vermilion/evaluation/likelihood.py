"""The base model's probabilities of a given text: one clean pass, all positions read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vermilion.engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Opinion:
    """The base's probability of an answer, given its left context."""

    mean_logprob: float
    """Nats per token."""
    greedy_share: float
    """Positions that hold the base's likeliest token."""


def opinion(engine: Engine, prompt: Sequence[int], answer: Sequence[int]) -> Opinion:
    """Score `answer` behind `prompt`; raises what `Engine.score` does."""
    readings = engine.score(prompt, answer)
    total = math.fsum(reading.target_logprobs[0] for reading in readings)
    hits = sum(reading.token == token for reading, token in zip(readings, answer, strict=True))
    return Opinion(total / len(answer), hits / len(answer))
