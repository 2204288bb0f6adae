"""A worker without a model: it remembers what every memory slot holds and checks what every row sees.

Its opinions are a pure function of what the row sees, so an answer must come out the same alone and in any
company; and each slot carries the whole text that its row saw, so a key that was computed from other text,
moved wrongly, shared wrongly or overwritten is found the first time a row looks at it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tests import tiny
from vermilion.decoding.drafting import RowCosts
from vermilion.decoding.forward_jobs import Job, Wanted
from vermilion.decoding.passes import Read, Reading, Segment
from vermilion.decoding.penalties import BAN
from vermilion.engine.cache import PageCache
from vermilion.engine.engine import Engine
from vermilion.engine.scheduler import Limits, Scheduler
from vermilion.models.families import Traits
from vermilion.types import ModelInfo

TOKENS = (tiny.EOS, *range(2, 18))
DECODERS = ("ar", "lossless", "relaxed", "threshold", "schedule", "entropy", "cumulative")


@dataclass(slots=True)
class Cell:
    """What one slot holds: the token and position of the row that wrote it, and all that the row saw."""

    token: int
    position: int
    noisy: bool
    masked: bool
    step: int
    saw: int = 0
    """Digest of all the text its row saw."""


@dataclass(frozen=True, slots=True)
class _Row:
    segment: Segment
    position: int
    seen: list[Cell]
    digests: list[int]
    """Of the text seen up to each position, itself included."""


class ShadowWorker:
    """Stands in for `engine.worker.Worker`. `failing` makes the next run raise."""

    def __init__(self, cache: PageCache, traits: Traits) -> None:
        self.memory: list[Cell | None] = [None] * (cache.num_pages * cache.page_size)
        self.cache = cache
        self.traits = traits
        self.scheduler: Scheduler | None = None
        self.failing = False
        self.steps = 0
        self.most_rows = 0
        self.moves = 0
        self.kept: set[str] = set()
        """Requests that something is kept for."""

    def run(self, jobs: Sequence[Job]) -> list[list[Reading]]:
        assert jobs, "a step without work"
        if self.failing:
            self.failing = False
            raise RuntimeError("the device fell off")
        self.steps += 1
        self.most_rows = max(self.most_rows, sum(job.rows.num_rows for job in jobs))
        self.kept |= {job.request for job in jobs}
        self._move(jobs)
        written: set[int] = set()
        cells = [self._write(job, written) for job in jobs]
        answers = []
        for job, mine in zip(jobs, cells, strict=True):
            rows = self._rows(job, mine)
            for before, row in zip([None, *rows], rows, strict=False):
                if before is None or before.seen is not row.seen:
                    self._check(job, row)
            answers.append([self._reading(rows, read, want) for read, want in self._reads(job)])
        return answers

    def release(self, request: str) -> None:
        self.kept.discard(request)

    def _slot(self, job: Job, logical: int) -> int:
        size = self.cache.page_size
        return job.pages[logical // size] * size + logical % size

    def _move(self, jobs: Sequence[Job]) -> None:
        pairs = [(self._slot(job, a), self._slot(job, b)) for job in jobs for a, b in job.rows.moves]
        moved = [(self.memory[source], target) for source, target in pairs]
        for cell, target in moved:
            assert cell is not None and not cell.noisy
            self.memory[target] = cell
            self.moves += 1

    def _write(self, job: Job, written: set[int]) -> list[Cell]:
        cells = []
        for segment in job.rows.segments:
            for row, token in enumerate(segment.ids):
                slot = self._slot(job, segment.slot + row)
                page = slot // self.cache.page_size
                assert self.cache._holders[page] == 1, "a row writes into a page that others hold"
                assert page not in self.cache._digests, "a row writes into a remembered page"
                assert slot not in written, "two rows of one forward write the same slot"
                written.add(slot)
                masked = bool(segment.masked) and segment.masked[row]
                assert masked == (token == tiny.MASK)
                cell = Cell(token, segment.start + row, segment.noisy, masked, self.steps)
                self.memory[slot] = cell
                cells.append(cell)
        return cells

    def _rows(self, job: Job, cells: list[Cell]) -> list[_Row]:
        """Every row with what it sees, in order of position; notes in each cell what its row saw."""
        rows: list[_Row] = []
        memory, size, pages = self.memory, self.cache.page_size, job.pages
        table = [pages[i // size] * size + i % size for i in range(job.rows.num_slots)]
        for segment in job.rows.segments:
            for row in range(len(segment.ids)):
                if row and segment.reach(row) == segment.reach(row - 1):
                    seen, digests = rows[-1].seen, rows[-1].digests
                else:
                    own = table[segment.slot : segment.slot + segment.reach(row)]
                    slots = (*table[: segment.sees], *(table[i] for i in segment.also), *own)
                    held = [memory[slot] for slot in slots]
                    assert None not in held, "a row sees a slot that was never written"
                    seen = sorted(held, key=lambda cell: cell.position)  # type: ignore[union-attr]
                    digests = list(accumulate((cell.token for cell in seen), _digest, initial=0))[1:]
                cells[len(rows)].saw = digests[-1]
                rows.append(_Row(segment, segment.start + row, seen, digests))
        return rows

    def _horizon(self, position: int) -> int:
        """How much text a committed token at `position` depends on."""
        grid = self.traits.block_grid if self.traits.context == "block" else 1
        return (position // grid + 1) * grid

    def _check(self, job: Job, row: _Row) -> None:
        """The row sees each position once, from 0 to where its rule ends, and only keys of this very text."""
        segment = row.segment
        end = segment.start + len(segment.ids) if segment.noisy else self._horizon(row.position)
        assert [cell.position for cell in row.seen] == list(range(end))
        assert self.scheduler is not None
        tokens = next(s.program.tokens for s in self.scheduler.running if s.pages is job.pages)
        assert all(cell.token == token for cell, token in zip(row.seen, tokens, strict=False)), (
            "a row sees another token than its request's"
        )
        for cell in row.seen:
            if cell.noisy:
                assert segment.noisy and cell.step == self.steps, "a row sees a leftover of an earlier canvas"
            else:
                horizon = self._horizon(cell.position)
                assert cell.saw == row.digests[horizon - 1], "a key was computed from other text"

    def _reads(self, job: Job) -> list[tuple[Read, Wanted]]:
        return list(zip(job.rows.reads, job.wanted, strict=True))

    def _reading(self, rows: list[_Row], read: Read, want: Wanted) -> Reading:
        row = rows[read.row]
        clean = read.purpose in ("next", "check")
        assert row.segment.noisy != clean
        assert read.position == want.position == row.position + (1 if clean or self.traits.shift else 0)
        if read.purpose == "mask":
            assert next(cell.masked for cell in row.seen if cell.position == read.position)
        return opinion(row.digests[-1], row.seen[0].token, want)


def _digest(before: int, token: int) -> int:
    return hash((before, token))


def opinion(text: int, first: int, want: Wanted) -> Reading:
    """Mostly a matter of the position, so that drafts often come true, sometimes of all that is seen."""
    changes = want.adjustments
    banned = set(changes.tokens[changes.add == BAN].tolist()) if changes is not None else set()
    allowed = [token for token in TOKENS if token not in banned]
    key = abs(hash((text, want.position)))
    usual = abs(hash((first, want.position)))
    order = sorted(allowed, key=lambda token: hash((usual, token)))
    if key % 4 == 0:
        order = order[1:] + order[:1]
    likeliest = -(key // 7 % 1000) / 400
    ranked = [(token, likeliest - 0.7 * rank) for rank, token in enumerate(order)]
    known = dict(ranked)
    return Reading(
        token=order[0],
        logprob=likeliest,
        entropy=key // 11 % 1000 / 500,
        target_logprobs=tuple(known.get(token, -50.0) for token in want.targets),
        top=tuple(ranked[: want.top]),
    )


@dataclass(frozen=True, slots=True)
class Memory:
    """Sizes of one engine."""

    num_pages: int = 64
    page_size: int = 8
    max_rows: int = 256
    prefill_chunk: int = 256
    max_running: int = 8
    max_pause_ms: float = math.inf
    costs: RowCosts | None = None
    share: bool = True


def engine(traits: Traits, sizes: Memory, context_length: int) -> tuple[Engine, ShadowWorker]:
    """A whole engine but for the model."""
    cache = PageCache(sizes.num_pages, sizes.page_size, share=sizes.share and traits.context != "full")
    limits = Limits(sizes.max_rows, sizes.prefill_chunk, sizes.max_running, sizes.max_pause_ms)
    worker = ShadowWorker(cache, traits)
    worker.scheduler = Scheduler(limits, cache, sizes.costs)
    decoders = DECODERS if traits.has_next_token else DECODERS[3:]
    model = ModelInfo("shadow", context_length, tiny.VOCAB, (tiny.EOS,), tiny.MASK, decoders=decoders)
    built = Engine(worker, worker.scheduler, tiny.Letters(), model, traits)  # type: ignore[arg-type]
    return built, worker
