"""Runs the engine's jobs through the kernels: plain integers down, plain numbers up, as `engine/worker.py`.

Every call is one whole forward pass of the library, with the GIL released.
"""

from __future__ import annotations

import ctypes
import math
import os
import struct
import time
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vermilion.decoding.forward_jobs import Job, Wanted
from vermilion.decoding.passes import ON_IT, Read, Reading
from vermilion.decoding.penalties import Adjustments
from vermilion.models.families import Architecture
from vermilion.native import library
from vermilion.native.checkpoint_packing import PackedAdapter, layer_products
from vermilion.native.kept_logits import divergence, guide, log_softmax
from vermilion.native.library import LowRankStruct
from vermilion.native.model_table import ModelTable
from vermilion.native.packed_file import PackedFile
from vermilion.native.pass_answers import PassAnswers
from vermilion.native.signals import Signals
from vermilion.native.stored_sizes import filled_up
from vermilion.types import EngineInfo, Sampling, Timing

# The structures of kernels/interface.h that come in arrays.
_SEGMENT_SIZE = 10
"""Numbers of a segment."""
_PASS = struct.Struct("@6i13P")
_READ = struct.Struct("=4dQq14i")
_CHANGE = np.dtype([("token", "i4"), ("repetition", "f4"), ("add", "f4")])
_NO_DRAFT, _ON_IT = -2, -3


class _Lists:
    """One pass's numbers, request after request, as the library takes them."""

    def __init__(self) -> None:
        self.segments, self.ids, self.also, self.moves, self.targets = (array("i") for _ in range(5))
        self.pages, self.first_page, self.taps = array("i"), array("i"), array("i")
        self.masked, self.reads, self.changes, self.allowed = (array("B") for _ in range(4))
        self.num_reads = self.num_top = 0
        self.num_given = 0
        """Tokens that may stand before the pass's drafts, at the most."""
        self.num_choices = 0
        """Of the drafts behind all of these."""
        self.guided = False
        """Whether logits of some read count against another row's."""
        self.moving = False
        """Whether it is asked of some how far its distribution has moved."""

    def packed(self, num_requests: int, drafting: bool, signals: int) -> bytes:
        """The structure Pass, which points into these arrays; `signals`: an address, or 0."""
        arrays = (
            self.segments, self.ids, self.masked, self.also, self.pages, self.first_page, self.moves,
            self.reads, self.targets, self.changes, self.allowed,
        )  # fmt: skip
        return _PASS.pack(
            len(self.segments) // _SEGMENT_SIZE, num_requests, len(self.moves) // 2, self.num_reads,
            len(self.taps), drafting, *(one.buffer_info()[0] for one in arrays), signals,
            self.taps.buffer_info()[0],
        )  # fmt: skip


def num_threads(configured: int) -> int:
    """What the configuration says, else OMP_NUM_THREADS, else the cores that this process may use."""
    if configured:
        return configured
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


class NativeRunner:
    """A packed model and its key/value pool of num_pages x page_size slots, in half precision."""

    def __init__(
        self,
        packed: PackedFile,
        architecture: Architecture,
        mask_token_id: int,
        pool: tuple[int, int],
        threads: int = 0,
        instruction_set: str = "",
    ) -> None:
        """`pool` is (num_pages, page_size). Raises LibraryMissing, and ValueError for an instruction set that
        this processor lacks."""
        self.architecture = architecture
        self.threads = num_threads(threads)
        self.page_size = pool[1]
        self._kernels = library.load()
        wanted = instruction_set or os.environ.get("VERMILION_INSTRUCTION_SET", "")
        self.instruction_set = library.instruction_set(wanted)
        if self.instruction_set is None:
            raise ValueError(f"this processor does not run {wanted!r}")
        self._packed = packed
        self._table = ModelTable(packed, architecture, mask_token_id)
        self._session = self._kernels.vermilion_open(
            ctypes.byref(self._table.struct), *pool, self.threads, self.instruction_set.encode()
        )
        if not self._session:
            raise MemoryError("the key/value pool does not fit into memory; lower engine.kv_tokens")
        self._adapters: dict[str, tuple[int, PackedAdapter]] = {}
        self._next_adapter = 0
        self._mask_token_id = mask_token_id
        size = filled_up(architecture.hidden_size)
        self._signals = Signals(size) if architecture.self_conditioning else None
        self._distributions: dict[str, dict[int, Any]] = {}
        """Log-probabilities [vocabulary] by position, of requests that ask how they move."""
        self.keep_logits = False
        """Whether `logits` holds those of the last pass's reads, [reads, vocabulary], before any penalty."""
        self.logits: Any = None
        self.taps: Sequence[int] = ()
        """Layers whose inputs are kept from each pass; the number of layers for what the last norm takes."""
        self.tapped: Any = None
        """Those of the last pass, [rows, taps, hidden], float32; rows as the jobs list them."""
        self._forward_s = self._prepare_s = 0.0
        self._forwards = self._rows = 0
        self._answers = PassAnswers()

    @property
    def timing(self) -> Timing:
        """Of all passes so far; tokens are chosen inside the library, in the same call."""
        return Timing(self._forward_s, 0.0, self._prepare_s, self._forwards, self._rows)

    @property
    def weights(self) -> Any:
        """The packed file's bytes."""
        return self._packed.data

    @property
    def bytes_per_pass(self) -> int:
        """Weights that a pass of one row reads: not the embedding's other rows, nor experts that it does not
        choose."""
        a, packed = self.architecture, self._packed
        size = packed.size_of("") - (0 if a.tied_embeddings else packed.size_of("embedding"))
        for index, kind in enumerate(a.layer_kinds()):
            if kind.experts is not None:
                unused = kind.experts.num_experts - kind.experts.num_active
                size -= packed.size_of(f"{index}.experts.") * unused // kind.experts.num_experts
        return size

    def info(self) -> EngineInfo:
        return EngineInfo("native", "cpu", "quantized", self.threads, self.instruction_set or "")

    def close(self) -> None:
        """Free the pool and end the threads; the runner may not be used after it."""
        if self._session:
            self._kernels.vermilion_close(self._session)
            self._session = None

    def __del__(self) -> None:
        if getattr(self, "_session", None):
            self.close()

    def attach(self, name: str, adapter: object) -> None:
        """From the next pass on jobs may name this adapter, a `PackedAdapter`."""
        assert isinstance(adapter, PackedAdapter)
        number, self._next_adapter = self._next_adapter, self._next_adapter + 1
        names = [product for product, _ in layer_products(self.architecture)]
        table = (LowRankStruct * len(names))(*(adapter.packed.low_rank(name) for name in names))
        self._kernels.vermilion_adapt(self._session, number, table)
        self._adapters[name] = (number, adapter)

    def detach(self, name: str) -> None:
        """Forget an adapter that no job names any more."""
        number, _ = self._adapters.pop(name)
        self._kernels.vermilion_adapt(self._session, number, None)

    def release(self, request: str) -> None:
        """Free what is kept for a request between its jobs."""
        self._distributions.pop(request, None)
        if self._signals is not None:
            self._signals.release(request)

    def run(self, jobs: Sequence[Job]) -> list[list[Reading]]:
        """One forward over all jobs; the readings of each, in the order of its reads."""
        return self._run(jobs, drafting=False)

    def draft(self, jobs: Sequence[Job]) -> list[list[Reading]]:
        """The same through the drafter, whose layers have keys and values of all that the base has stored."""
        return self._run(jobs, drafting=True)

    def _run(self, jobs: Sequence[Job], *, drafting: bool) -> list[list[Reading]]:
        began = time.perf_counter()
        lists = _Lists()
        row = 0
        for request, job in enumerate(jobs):
            adapter = self._adapters[job.adapter][0] if job.adapter else -1
            _list_rows(lists, job, request, adapter, self.page_size)
            _list_reads(lists, job, row)
            row += job.rows.num_rows
        lists.first_page.append(len(lists.pages))
        guides = _list_guides(lists, jobs) if lists.guided else []
        moving = lists.moving
        kept = self.keep_logits or moving or bool(guides)
        outcome = self._answers
        outcome.make_room(
            (lists.num_reads, len(lists.targets), lists.num_top, lists.num_given, lists.num_choices),
            self.architecture.vocab_size if kept else 0,
            0 if self._signals is None else self._signals.size,
        )
        if self.taps and not drafting:
            shape = (row, len(self.taps), filled_up(self.architecture.hidden_size))
            self.tapped = np.empty(shape, np.float32)
            outcome.struct.tapped = self.tapped.ctypes.data
            lists.taps.extend(self.taps)
        signals = None if self._signals is None else self._signals.of_rows(jobs, row)
        asked = lists.packed(len(jobs), drafting, 0 if signals is None else signals.ctypes.data)
        prepared = time.perf_counter()
        self._kernels.vermilion_run(self._session, asked, ctypes.byref(outcome.struct))
        self._forward_s += time.perf_counter() - prepared
        self._prepare_s += prepared - began
        if not drafting:
            self._forwards, self._rows = self._forwards + 1, self._rows + row
        if self.keep_logits:
            self.logits = outcome.logits
        if self._signals is not None:
            self._signals.keep(jobs, outcome.signals)
        readings = outcome.readings(jobs)
        if guides:
            guide(jobs, readings, outcome.logits, guides, self._mask_token_id)
        return self._moved(jobs, outcome, readings) if moving else readings

    def _moved(
        self, jobs: Sequence[Job], outcome: PassAnswers, answers: list[list[Reading]]
    ) -> list[list[Reading]]:
        """The answers with how far the distributions of those who ask have moved since their last pass."""
        row = 0
        for job, readings in zip(jobs, answers, strict=True):
            now = {}
            before = self._distributions.get(job.request, {})
            for i, want in enumerate(job.wanted):
                if want.divergence:
                    now[want.position] = log_softmax(outcome.logits[row + i], self._mask_token_id)
                    earlier = before.get(want.position)
                    moved = math.inf if earlier is None else divergence(now[want.position], earlier)
                    readings[i] = replace(readings[i], divergence=moved)
            if now:
                self._distributions[job.request] = now
            row += len(readings)
        return answers


def _list_rows(lists: _Lists, job: Job, request: int, adapter: int, page_size: int) -> None:
    lists.first_page.append(len(lists.pages))
    lists.pages.extend(job.pages)
    for old, new in job.rows.moves:
        for slot in (old, new):
            lists.moves.append(job.pages[slot // page_size] * page_size + slot % page_size)
    for segment in job.rows.segments:
        count = len(segment.ids)
        lists.segments.extend((
            request, count, segment.start, segment.slot, segment.sees, segment.span, segment.noisy, adapter,
            len(lists.also), len(segment.also),
        ))  # fmt: skip
        lists.ids.extend(segment.ids)
        lists.masked.frombytes(bytes(segment.masked) or bytes(count))
        lists.also.extend(segment.also)


def _list_reads(lists: _Lists, job: Job, first_row: int) -> None:
    first_read = lists.num_reads
    befores: list[int] = []
    for read, want in zip(job.rows.reads, job.wanted, strict=True):
        _list_read(lists, read, want, (first_row, first_read))
        before = 0
        if read.purpose == "draft" and read.after != -1:
            earlier = job.rows.reads[max(0, read.after)]
            before = earlier.top if read.after >= 0 and earlier.purpose == "draft" else 1
        befores.append(before)
        lists.num_given += before
        lists.num_choices += before * read.top


def _list_guides(lists: _Lists, jobs: Sequence[Job]) -> list[int]:
    """List, behind all other reads, the rows that count against some; the indexes of these."""
    guides, first_row, index = list[int](), 0, 0
    for job in jobs:
        for read in job.rows.reads:
            if read.against >= 0:
                guides.append(index)
                blind = Read(read.against, read.position, "mask")
                _list_read(lists, blind, Wanted(Sampling(), read.position), (first_row, 0))
            index += 1
        first_row += job.rows.num_rows
    return guides


def _list_read(lists: _Lists, read: Read, want: Wanted, first: tuple[int, int]) -> None:
    s = want.sampling
    after = _NO_DRAFT
    if read.purpose == "draft":
        after = first[1] + read.after if read.after >= 0 else _ON_IT if read.after == ON_IT else -1
    allowed = -1
    if want.allowed:
        allowed = len(lists.allowed)
        lists.allowed.frombytes(want.allowed)
    num_changes = 0 if want.adjustments is None else len(want.adjustments.tokens)
    packed = _READ.pack(
        0.0 if s.greedy else s.temperature, s.top_p, s.min_p, want.divisor, s.seed & (2**64 - 1), allowed,
        first[0] + read.row, want.position, s.top_k, want.top, want.entropy,
        len(lists.targets), len(want.targets), len(lists.changes) // _CHANGE.itemsize, num_changes, after,
        read.top, want.may_mask,
        want.draw, read.purpose == "canvas",
    )  # fmt: skip
    lists.reads.frombytes(packed)
    lists.num_reads += 1
    lists.guided |= read.against >= 0
    lists.moving |= want.divergence
    lists.targets.extend(want.targets)
    lists.num_top += want.top
    if want.adjustments is not None:
        lists.changes.frombytes(_changes(want.adjustments))


def _changes(adjustments: Adjustments) -> bytes:
    made = np.empty(len(adjustments.tokens), _CHANGE)
    made["token"], made["repetition"] = adjustments.tokens, adjustments.repetition
    made["add"] = adjustments.add
    return made.tobytes()
