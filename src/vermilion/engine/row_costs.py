"""What a forward costs by its number of rows, measured on the machine and model that will serve."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from vermilion.decoding.drafting import RowCosts
from vermilion.decoding.forward_jobs import Job, Wanted
from vermilion.decoding.passes import Pass, Purpose, Read, Reading, Segment
from vermilion.decoding.speculative import CHOICES
from vermilion.types import Sampling

_ROWS = (1, 2, 4, 8, 16, 32, 64)
_CONTEXT = 256
"""Slots that every row sees. A row's own cost hardly depends on it; what it reads beside the weights does."""
_BUDGET_S = 0.6
_MAX_ROUNDS = 5
_IN_A_ROW, _IN_A_ROW_S = 3, 0.02


class Runs(Protocol):
    """What runs forwards: a worker."""

    def run(self, jobs: Sequence[Job]) -> list[list[Reading]]: ...

    def draft(self, jobs: Sequence[Job]) -> list[list[Reading]]: ...


def measure(
    worker: Runs, page_size: int, num_pages: int, *, denoises: bool, drafts: bool = False
) -> RowCosts:
    """The fastest of a few rounds over each number of rows, each for as long, in well under a second.

    Uses pages from 0 on, which must not hold anything yet; what it leaves there nobody sees.
    """
    most = min(_ROWS[-1], num_pages * page_size // 2)
    context = min(_CONTEXT, num_pages * page_size - most)
    pages = range(-(-(context + most) // page_size))
    sizes = [rows for rows in _ROWS if rows <= most]
    best = dict.fromkeys([(rows, False) for rows in sizes], math.inf)
    if denoises:
        best[(8, True)] = math.inf
    spent_s, rounds = dict.fromkeys(best, 0.0), dict.fromkeys(best, 0)
    worker.run([_job(pages, context, 2, noisy=False)])  # the first forward also makes buffers
    # Forwards of few rows run most often, as what they cost decides about drafts.
    while min(rounds.values()) < _MAX_ROUNDS and (
        sum(spent_s.values()) < _BUDGET_S / 2 or 0 in rounds.values()
    ):
        size = min(spent_s, key=lambda size: spent_s[size])
        job = _job(pages, context, size[0], noisy=size[1])
        rounds[size] += 1
        until_s = spent_s[size] + _IN_A_ROW_S
        # The first of several alike finds the caches full of what the one before it needed.
        for _ in range(_IN_A_ROW):
            started = time.perf_counter()
            worker.run([job])
            took_s = time.perf_counter() - started
            spent_s[size] += took_s
            best[size] = min(best[size], 1e3 * took_s)
            if spent_s[size] > until_s:
                break
    drafter = (0.0, 0.0)
    if drafts and most >= 8:
        one, eight = (_drafter_ms(worker, _job(pages, context, rows, noisy=True)) for rows in (1, 8))
        each = max(0.0, (eight - one) / 7)
        drafter = (one - each, each)
    added = (best[(8, True)] - best[(8, False)]) / 8 if denoises and 8 in sizes else 0.0
    # Whatever else the machine does only adds to a time: fewer rows never cost more.
    ms = list(accumulate([best[(rows, False)] for rows in reversed(sizes)], min))[::-1]
    return RowCosts(sizes, ms, added, drafter)


def _drafter_ms(worker: Runs, job: Job) -> float:
    """The fastest of a few of its passes."""
    best = float("inf")
    for _ in range(_MAX_ROUNDS + 1):
        started = time.perf_counter()
        worker.draft([job])
        best = min(best, 1e3 * (time.perf_counter() - started))
    return best


def _job(pages: Sequence[int], context: int, rows: int, *, noisy: bool) -> Job:
    purpose: Purpose = "draft" if noisy else "next"
    ids, masked = (0,) * rows, (noisy,) * rows
    segment = Segment(ids, context, context, context, span=0 if noisy else 1, noisy=noisy, masked=masked)
    top = CHOICES if noisy else 0
    reads = tuple(
        Read(row, context + row + 1, purpose, top=top, after=row - 1 if noisy else -1) for row in range(rows)
    )
    wanted = [Wanted(Sampling(), read.position, top=top) for read in reads]
    return Job(pages, Pass((segment,), reads), wanted)
