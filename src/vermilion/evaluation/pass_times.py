"""What one denoise pass takes by its number of rows, next to the least it can and to a peer's pass.

A pass cannot take less than reading its weights once: their bytes over the rate at which this machine reads
them, measured in the same run. A peer's pass evaluates as many tokens behind a cached prefix as long as ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from vermilion.decoding.forward_jobs import Job, Wanted
from vermilion.decoding.passes import Pass, Read, Segment
from vermilion.engine.llm import LLM
from vermilion.evaluation.peers import LlamaCpp
from vermilion.native.runner import NativeRunner
from vermilion.types import Sampling

ROWS = (1, 4, 8, 16, 32, 64)
CONTEXT = 256
"""Tokens that every row sees besides its canvas."""
_PIECE_BYTES = 1 << 27
_READS = 3


@dataclass(frozen=True, slots=True)
class PassRow:
    """One engine's pass. The fastest of the rounds, and the spread (slowest - fastest) / fastest."""

    engine: str
    rows: int
    ms: float
    cpu_ms: float
    """Processor time of all threads."""
    spread: float
    floor_ms: float = 0.0
    """Weights that are read over the measured rate; 0 where the engine does not say."""
    floor_cpu_ms: float = 0.0
    """The same by the processor time that reading takes."""
    weight_bytes: int = 0


def run_pass(llm: LLM) -> None:
    """One row of ours, which reads all weights. Writes where `measure_passes` does."""
    _own(llm)(1, 0)


def measure_passes(llm: LLM, rounds: int, peer: LlamaCpp | None = None) -> list[PassRow]:
    """Ours and the peer's in turns, `rounds` times each. Writes into the cache's first pages, which must not
    hold anything."""
    cache = llm.engine.scheduler.cache
    sizes = [rows for rows in ROWS if CONTEXT + rows <= cache.num_slots]
    ways: dict[str, Callable[[int, int], float]] = {llm.engine.info().backend: _own(llm)}
    if peer is not None:
        ways["llama.cpp"] = _peers(llm, peer)
    taken: dict[tuple[str, int], list[tuple[float, float]]] = {}
    reads = []
    worker = llm.engine.worker
    for number in range(rounds):
        if isinstance(worker, NativeRunner):
            reads.append(_seconds_per_byte(worker.weights, worker.threads))
        for rows in sizes:
            for name, way in ways.items():
                before = time.process_time()
                ms = way(rows, number)
                spent = 1e3 * (time.process_time() - before)
                taken.setdefault((name, rows), []).append((ms, spent))
    made = []
    for (name, rows), each in taken.items():
        times = [ms for ms, _ in each]
        spread = (max(times) - min(times)) / min(times)
        row = PassRow(name, rows, min(times), min(spent for _, spent in each), spread)
        if name == "native" and isinstance(worker, NativeRunner):
            size, floors = worker.bytes_per_pass, [1e3 * min(each) for each in zip(*reads, strict=True)]
            row = PassRow(name, rows, row.ms, row.cpu_ms, spread, floors[0] * size, floors[1] * size, size)
        made.append(row)
    return made


def _own(llm: LLM) -> Callable[[int, int], float]:
    cache, mask = llm.engine.scheduler.cache, llm.engine.traits.mask_token_id
    pages = range(-(-(CONTEXT + ROWS[-1]) // cache.page_size))

    def run(rows: int, _: int) -> float:
        segment = Segment(
            (max(mask, 0),) * rows, CONTEXT, CONTEXT, CONTEXT, span=0, noisy=True, masked=(True,) * rows
        )
        reads = tuple(Read(row, CONTEXT + row, "mask") for row in range(rows))
        wanted = [Wanted(Sampling(), read.position) for read in reads]
        job = Job(pages, Pass((segment,), reads), wanted)
        began = time.perf_counter()
        llm.engine.worker.run([job])
        return 1e3 * (time.perf_counter() - began)

    return run


def _peers(llm: LLM, peer: LlamaCpp) -> Callable[[int, int], float]:
    num_tokens = llm.tokenizer.vocab_size // 2
    prefix = [37 * i % num_tokens for i in range(CONTEXT)]
    peer.pass_ms(prefix, prefix[:1])

    def run(rows: int, number: int) -> float:
        return peer.pass_ms(prefix, [(31 * i + 7 * rows + number) % num_tokens for i in range(rows)])

    return run


def _seconds_per_byte(weights: np.ndarray, threads: int) -> tuple[float, float]:
    """(by the clock, of processor time) that reading takes: the least of a few, for the first maps it."""
    words = weights[: weights.size // 8 * 8].view(np.uint64)
    step = _PIECE_BYTES // 8
    pieces = [words[at : at + step] for at in range(0, words.size, step)]
    taken: list[tuple[float, float]] = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_READS):
            began, before = time.perf_counter(), time.process_time()
            list(pool.map(np.sum, pieces))
            taken.append((time.perf_counter() - began, time.process_time() - before))
    clock, spent = (min(each) / words.nbytes for each in zip(*taken, strict=True))
    return clock, spent


def print_passes(rows: Sequence[PassRow]) -> None:
    """A table with a line for each number of rows."""
    names = list(dict.fromkeys(row.engine for row in rows))
    table = Table(box=None, header_style="bold", title="one pass, ms (of CPU)")
    floors = [f"{row.floor_ms:.1f} ({row.floor_cpu_ms:.1f})" for row in rows if row.floor_ms]
    for name in ("rows", *(["floor"] if floors else []), *names):
        table.add_column(name, justify="right")
    for count in dict.fromkeys(row.rows for row in rows):
        of_count = {row.engine: row for row in rows if row.rows == count}
        cells = (f"{of_count[name].ms:.1f} ({of_count[name].cpu_ms:.1f})" for name in names)
        table.add_row(str(count), *floors[:1], *cells)
    Console(width=100).print(table)
