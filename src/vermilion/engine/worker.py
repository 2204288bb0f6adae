"""The only part of the engine that touches tensors: integers in, one forward, plain numbers out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vermilion.decoding.forward_jobs import Job
from vermilion.decoding.passes import Choices, Reading, Segment
from vermilion.decoding.sampling import read, widened
from vermilion.engine import conditioning
from vermilion.engine.device_state import DeviceState, DeviceStates, distances
from vermilion.engine.following import Draft, follow
from vermilion.engine.mixtures import mixtures
from vermilion.models import adapters, neighbours
from vermilion.models.adapters import DENOISER, Adapter
from vermilion.models.attention import LayeredAttention, Visibility
from vermilion.models.drafted_rows import DraftedRows
from vermilion.models.linear import AdapterRows
from vermilion.models.neighbours import Neighbours
from vermilion.models.transformer import Rows, Transformer
from vermilion.types import EngineInfo, Timing


@dataclass(slots=True)
class _Flat:
    """Rows of several requests side by side, clean ones first."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    masked: list[bool] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    adapters: list[AdapterRows] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    before: list[list[int]] = field(default_factory=list)
    mixed: dict[int, Choices] = field(default_factory=dict)
    """By row."""


class Worker:
    """A model, its key/value pool of num_pages x page_size slots, and what it keeps for each request."""

    def __init__(
        self,
        model: Transformer,
        num_pages: int,
        page_size: int,
        mask_token_id: int,
        *,
        attention: str = "dense",
    ) -> None:
        """`attention`: one of `ATTENTION_KINDS`."""
        self.model = model
        self.page_size = page_size
        self.mask_token_id = mask_token_id
        self.pool = model.new_pool(num_pages * page_size)
        self._drafted = DraftedRows.of(model)
        self.timing = Timing()
        self._device = model.norm.weight.device
        self._reach = neighbours.reach_of(model.architecture)
        self._routing_block = neighbours.routing_block(model.architecture)
        heads = model.own.num_heads
        self._attention = LayeredAttention(model.own.layer_kinds(), heads, self.pool, attention)
        self._drafting = None
        if model.drafter is not None:
            self._drafting = LayeredAttention(model.drafter.layer_kinds, heads, self.pool, attention)
        self.states = DeviceStates(page_size, self._device)

    def attach(self, name: str, adapter: object) -> None:
        """From the next forward on jobs may name this adapter, an `Adapter`."""
        assert isinstance(adapter, Adapter)
        adapters.attach(self.model, name, adapter)

    def detach(self, name: str) -> None:
        """Forget an adapter that no job names any more."""
        adapters.detach(self.model, name)

    def release(self, request: str) -> None:
        """Free what is kept for a request that has ended, or has lost its pages."""
        self.states.release(request)

    def info(self) -> EngineInfo:
        dtype = str(self.model.norm.weight.dtype).removeprefix("torch.")
        return EngineInfo("torch", str(self._device), dtype, torch.get_num_threads())

    def run(self, jobs: Sequence[Job]) -> list[list[Reading]]:
        """One forward over all jobs; the readings of each, in the order of its reads."""
        return self._run(jobs, self.model, self._attention)

    def draft(self, jobs: Sequence[Job]) -> list[list[Reading]]:
        """The same through the drafter, whose layers have keys and values of all that the base has stored."""
        assert self._drafted is not None and self._drafting is not None
        return self._run(jobs, self._drafted, self._drafting)

    @torch.inference_mode()
    def _run(
        self, jobs: Sequence[Job], model: Transformer | DraftedRows, attention: LayeredAttention
    ) -> list[list[Reading]]:
        began = time.perf_counter()
        self._move(jobs)
        rows, read_rows = self._gather(jobs, attention)
        guides = _guides(jobs)
        prepared = time.perf_counter()
        hidden_NH = model(rows, self.pool)
        wanted = [want for job in jobs for want in job.wanted]
        hidden_RH = hidden_NH[self._tensor(read_rows)] if wanted else None
        logits_RV = None if hidden_RH is None else widened(model.logits(hidden_RH))
        if guides and logits_RV is not None:
            logits_RV = _guided(logits_RV, guides)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        computed = time.perf_counter()
        moved = {} if logits_RV is None else self._divergences(jobs, logits_RV)
        readings = [] if logits_RV is None else read(logits_RV, wanted, self.mask_token_id)
        drafts_only = isinstance(model, DraftedRows)
        if logits_RV is not None and not drafts_only and self.model.self_conditioning is not None:
            conditioning.keep(self.model, self.states, jobs, logits_RV)
        for index, divergence in moved.items():
            readings[index] = replace(readings[index], divergence=divergence)
        head = model.drafter.head if isinstance(model, DraftedRows) else model.draft_head
        drafts = _drafts(jobs) if head is not None else []
        if drafts and head is not None and hidden_RH is not None:
            drafted = self._tensor([draft.index for draft in drafts])
            readings = follow(self.model, head, hidden_RH[drafted], drafts, readings)
        self.timing += Timing(
            forward_s=computed - prepared,
            decode_s=time.perf_counter() - computed,
            prepare_s=prepared - began,
            forwards=0 if drafts_only else 1,
            rows=0 if drafts_only else rows.ids_N.shape[0],
        )
        return _split(readings, [len(job.wanted) for job in jobs])

    def _divergences(self, jobs: Sequence[Job], logits_RV: Tensor) -> dict[int, float]:
        """By read, how far its distribution has moved since the request's last pass, before penalties. Keeps
        the distributions of this one."""
        moved: dict[int, float] = {}
        start = 0
        for job in jobs:
            asked = [i for i, want in enumerate(job.wanted) if want.divergence]
            if asked:
                logits = logits_RV[[start + i for i in asked]]
                logits[:, self.mask_token_id] = float("-inf")
                positions = self._tensor([job.wanted[i].position for i in asked])
                kept = self.states.of(job.request).tensors
                found = distances(torch.log_softmax(logits.float(), -1), positions, kept)
                moved |= {start + i: value for i, value in zip(asked, found, strict=True)}
            start += len(job.wanted)
        return moved

    def _gather(self, jobs: Sequence[Job], attention: LayeredAttention) -> tuple[Rows, list[int]]:
        """The forward's rows, and which of them are read, in the order of the jobs' reads."""
        flat = _Flat()
        row_of: list[list[int]] = [[] for _ in jobs]
        num_clean = 0
        # Rows of one adapter lie side by side, so that a slice finds them.
        order = sorted(zip(jobs, row_of, strict=True), key=lambda part: part[0].adapter)
        for noisy in (False, True):
            for job, mine in order:
                before = len(flat.ids)
                for segment in job.rows.segments:
                    if segment.noisy != noisy:
                        continue
                    count = len(segment.ids)
                    mine.extend(range(len(flat.ids), len(flat.ids) + count))
                    mixed = zip(mine[len(mine) - count :], segment.mixed, strict=False)
                    flat.mixed.update((row, choices) for row, choices in mixed if choices)
                    flat.ids += segment.ids
                    flat.positions += range(segment.start, segment.start + count)
                    flat.masked += segment.masked or [False] * count
                    flat.slots += self._slots(job.pages, range(segment.slot, segment.slot + count))
                    self._note_neighbours(flat, job.pages, segment)
                _name_rows(flat.adapters, job.adapter, before, len(flat.ids))
            if not noisy:
                num_clean = len(flat.ids)
        num_rows = len(flat.ids)
        if num_clean < num_rows:
            flat.adapters.insert(0, AdapterRows(DENOISER, num_clean, num_rows))
        # A job without a name is one of its own: nothing of it is kept.
        names = [job.request or f"#{index}" for index, job in enumerate(jobs)]
        states = self.states.update([(name, job.pages) for name, job in zip(names, jobs, strict=True)])
        signal = None
        if self.model.self_conditioning is not None:
            noisy_rows = [[row - num_clean for row in mine if row >= num_clean] for mine in row_of]
            signal = conditioning.signal(self.model, self.states, list(zip(jobs, noisy_rows, strict=True)))
        seen = [self._visibility(*part) for part in zip(jobs, states, row_of, strict=True)]
        for name, job in zip(names, jobs, strict=True):
            if not job.request:
                self.release(name)
        ids_N, positions_N, slots_N = self._tensor([flat.ids, flat.positions, flat.slots])
        rows = Rows(
            ids_N=ids_N,
            positions_N=positions_N,
            masked_N=self._tensor(flat.masked),
            slots_N=slots_N,
            attend=attention.plan(seen, self.states.table_TS, num_rows),
            adapters=flat.adapters,
            signal_MH=signal,
            soft=mixtures(self.model, flat.mixed, self.mask_token_id) if flat.mixed else None,
            num_clean=num_clean,
            neighbours=self._neighbours(flat, positions_N),
        )
        asked = [(mine, read) for job, mine in zip(jobs, row_of, strict=True) for read in job.rows.reads]
        read_rows = [mine[read.row] for mine, read in asked]
        # Behind them those whose logits count against theirs.
        return rows, read_rows + [mine[read.against] for mine, read in asked if read.against >= 0]

    def _note_neighbours(self, flat: _Flat, pages: Sequence[int], segment: Segment) -> None:
        reach, size = self._reach, self._routing_block
        if size:
            # Blocks of a pass have numbers of their own, whatever stands at the same positions elsewhere.
            first = flat.blocks[-1] + 1 - segment.start // size if flat.blocks else -(segment.start // size)
            flat.blocks += [first + (segment.start + row) // size for row in range(len(segment.ids))]
        if reach:
            for slots in before(segment, reach):
                known = self._slots(pages, slots)
                flat.before.append([*[-1] * (reach - len(known)), *known])

    def _neighbours(self, flat: _Flat, positions_N: Tensor) -> Neighbours | None:
        if not (self._reach or self._routing_block):
            return None
        blocks, reach = flat.blocks or [0] * len(flat.ids), self._reach
        before_NK = self._tensor(flat.before) if reach else positions_N.new_empty(len(positions_N), 0)
        return Neighbours(positions_N, self._tensor(blocks), before_NK)

    def _move(self, jobs: Sequence[Job]) -> None:
        pairs = [(job.pages, *zip(*job.rows.moves, strict=True)) for job in jobs if job.rows.moves]
        if pairs:
            source = self._tensor([slot for pages, old, _ in pairs for slot in self._slots(pages, old)])
            target = self._tensor([slot for pages, _, new in pairs for slot in self._slots(pages, new)])
            self.pool[:, target] = self.pool[:, source]

    def _slots(self, pages: Sequence[int], logical: Iterable[int]) -> list[int]:
        size = self.page_size
        return [pages[slot // size] * size + slot % size for slot in logical]

    def _visibility(self, job: Job, state: DeviceState, rows: list[int]) -> Visibility:
        sees: list[int] = []
        start: list[int] = []
        end: list[int] = []
        also: list[tuple[int, int]] = []
        positions: list[int] = []
        slots: list[int] = []
        # Segments of one pass come clean ones first, as the rows do.
        for segment in job.rows.segments:
            count = len(segment.ids)
            also += [(len(sees) + row, slot) for row in range(count) for slot in segment.also]
            sees += [segment.sees] * count
            start += [segment.slot] * count
            end += [segment.slot + segment.reach(row) for row in range(count)]
            # Rows that all see each other see by the window of their first one.
            step = 0 if segment.span == 0 else 1
            positions += [segment.start + step * row for row in range(count)]
            slots += [segment.slot + step * row for row in range(count)]
        first_slot = state.first_page * self.page_size if state.unbroken else -1
        return Visibility(
            rows,
            sees,
            start,
            end,
            job.rows.num_slots,
            state.table_row,
            also,
            positions=positions,
            slots=slots,
            first_slot=first_slot,
        )

    def _tensor(self, values: Sequence[int] | Sequence[bool] | Sequence[list[int]]) -> Tensor:
        return torch.tensor(values, device=self._device)


def before(segment: Segment, count: int) -> Iterator[list[int]]:
    """Of each row the logical slots of at most `count` positions before it, oldest first."""
    end = min(segment.sees, segment.slot)
    text = [*range(max(0, end - count), end), *segment.also]
    num_before = len(text)
    text += range(segment.slot, segment.slot + len(segment.ids))
    for row in range(num_before, len(text)):
        yield text[max(0, row - count) : row]


def _guided(logits_RV: Tensor, guides: Sequence[tuple[int, float]]) -> Tensor:
    """The logits of all reads: of those in `guides`, (read, guidance), against the rows behind the reads."""
    reads = [read for read, _ in guides]
    against_GV = logits_RV[len(logits_RV) - len(guides) :]
    guidance_G1 = logits_RV.new_tensor([guidance for _, guidance in guides])[:, None]
    logits_RV = logits_RV[: len(logits_RV) - len(guides)].clone()
    logits_RV[reads] = against_GV + (1 + guidance_G1) * (logits_RV[reads] - against_GV)
    return logits_RV


def _guides(jobs: Sequence[Job]) -> list[tuple[int, float]]:
    """Which reads of all jobs are guided, and how much."""
    reads = [read for job in jobs for read in job.rows.reads]
    return [(i, read.guidance) for i, read in enumerate(reads) if read.against >= 0]


def _drafts(jobs: Sequence[Job]) -> list[Draft]:
    """The draft reads of all jobs, counted over all their readings."""
    drafts: list[Draft] = []
    start = 0
    for job in jobs:
        ids = [token for segment in job.rows.segments for token in segment.ids]
        drafts += [
            Draft(
                start + index,
                start + read.after if read.after >= 0 else read.after,
                ids[read.row],
                read.position,
                want.sampling,
                read.top,
            )
            for index, (read, want) in enumerate(zip(job.rows.reads, job.wanted, strict=True))
            if read.purpose == "draft"
        ]
        start += len(job.rows.reads)
    return drafts


def _name_rows(named: list[AdapterRows], adapter: str, start: int, end: int) -> None:
    """Add the rows [start, end) of `adapter`, to the last slice where they go on from it."""
    if not adapter or start == end:
        return
    if named and named[-1].name == adapter and named[-1].end == start:
        start = named.pop().start
    named.append(AdapterRows(adapter, start, end))


def _split(readings: Sequence[Reading], counts: Sequence[int]) -> list[list[Reading]]:
    parts: list[list[Reading]] = []
    at = 0
    for count in counts:
        parts.append(list(readings[at : at + count]))
        at += count
    return parts
