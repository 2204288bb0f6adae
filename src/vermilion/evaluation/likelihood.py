"""What the base model thinks of a given text: one clean pass over it, all positions read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vermilion.decoding.jobs import Job, Wanted
from vermilion.decoding.passes import Pass, Read, Segment
from vermilion.engine.engine import Engine
from vermilion.types import Sampling


@dataclass(frozen=True, slots=True)
class Opinion:
    """The base's view of an answer, given its own left context throughout."""

    mean_logprob: float
    """Nats per token."""
    greedy_share: float
    """Positions that hold the base's likeliest token."""


def opinion(engine: Engine, prompt: Sequence[int], answer: Sequence[int]) -> Opinion:
    """Score `answer` behind `prompt`. Needs an idle engine of a causal family; borrows its free pages."""
    tokens = (*prompt, *answer)
    cache = engine.scheduler.cache
    pages = cache.allocate(-(-len(tokens) // cache.page_size))
    if pages is None or not answer:
        raise ValueError(f"cannot score {len(answer)} tokens behind {len(prompt)}")
    segment = Segment(tokens, start=0, slot=0, sees=0, span=1)
    reads = [Read(p - 1, p, "check", (tokens[p],)) for p in range(len(prompt), len(tokens))]
    wanted = [Wanted(Sampling(), read.position, read.targets) for read in reads]
    [readings] = engine.worker.run([Job(pages, Pass((segment,), tuple(reads)), wanted)])
    cache.release(pages)
    total = math.fsum(reading.target_logprobs[0] for reading in readings)
    hits = sum(reading.token == token for reading, token in zip(readings, answer, strict=True))
    return Opinion(total / len(answer), hits / len(answer))
