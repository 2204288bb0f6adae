"""What the base model thinks of a given text: one clean pass over it, all positions read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vermilion.decoding.jobs import Job, Wanted
from vermilion.decoding.passes import Pass, Read, Reading, Segment
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
    readings = score(engine, prompt, answer)
    total = math.fsum(reading.target_logprobs[0] for reading in readings)
    hits = sum(reading.token == token for reading, token in zip(readings, answer, strict=True))
    return Opinion(total / len(answer), hits / len(answer))


def score(engine: Engine, prompt: Sequence[int], answer: Sequence[int]) -> list[Reading]:
    """The base's reading of each token of `answer`: its own choice there, and its log-probability of that
    token. Raises ValueError where either is empty or both do not fit."""
    if not answer or not prompt:
        raise ValueError(f"cannot score {len(answer)} tokens behind {len(prompt)}")
    tokens = (*prompt, *answer)
    segment = Segment(tokens, start=0, slot=0, sees=0, span=1)
    reads = tuple(Read(p - 1, p, "check", (tokens[p],)) for p in range(len(prompt), len(tokens)))
    return look(engine, Pass((segment,), reads))


def look(engine: Engine, rows: Pass) -> list[Reading]:
    """One forward beside the engine's requests, over pages that it lends for the moment."""
    cache = engine.scheduler.cache
    pages = cache.allocate(-(-rows.num_slots // cache.page_size))
    if pages is None:
        raise ValueError(f"{rows.num_slots} slots do not fit what is free of {cache.num_pages} pages")
    wanted = [Wanted(Sampling(), read.position, read.targets, top=read.top) for read in rows.reads]
    [readings] = engine.worker.run([Job(pages, rows, wanted)])
    cache.release(pages)
    return readings
