"""`vermilion bench`: the presets side by side on fixed prompts, in one process, interleaved.

Every figure of a row comes from the same process and the same minutes, so ratios between rows hold on a noisy
machine even where the absolute figures do not.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vermilion.config import EngineConfig
from vermilion.decoding.presets import resolve
from vermilion.engine.llm import LLM
from vermilion.errors import ConfigError
from vermilion.evaluation.environment import environment
from vermilion.evaluation.fixed_prompts import FixedPrompt, fixed
from vermilion.evaluation.likelihood import opinion
from vermilion.evaluation.pass_times import PassRow, measure_passes, print_passes, run_pass
from vermilion.evaluation.peers import (
    PEERS,
    LlamaCpp,
    PeerRound,
    PeerRow,
    Setup,
    opened,
    peer_row,
    require_package,
)
from vermilion.models import catalog
from vermilion.models.catalog import DEFAULT_MODEL
from vermilion.types import Decoding, Finish, Request, Sampling, Text, Timing


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """What to measure."""

    model: str = DEFAULT_MODEL
    presets: tuple[str, ...] = ()
    """Empty: all that the model has."""
    concurrency: tuple[int, ...] = (1,)
    prompts: int = 6
    """How many of the fixed prompts, taken chat, code, prose in turn."""
    max_tokens: int = 64
    repeats: int = 5
    output: Path | None = None
    """JSON Lines file that takes one row per preset and concurrency."""
    peer: str = ""
    """Another engine to run in turns with ours: `llama.cpp`."""
    peer_file: Path | None = None
    """GGUF that the peer reads where the model is none; only passes are compared then."""
    passes_only: bool = False
    """Whether to measure passes by their number of rows and no answers."""
    prompt_tokens: int = 0
    """Length that every prompt is brought to by repeating it; 0 leaves them as they are."""
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(prefix_cache=False))


@dataclass(slots=True)
class _Round:
    """One preset's run over all prompts once."""

    tokens: int
    passes: int
    wall_s: float
    first_text_s: float
    timing: Timing
    answers: list[tuple[int, ...]]
    edits: int


@dataclass(frozen=True, slots=True)
class Row:
    """One preset at one concurrency. Medians over the rounds; the spread is (highest - lowest) / median."""

    preset: str
    concurrency: int
    tokens_per_s: float
    tokens_per_s_spread: float
    speed_vs_ar: float
    tokens_per_pass: float
    ms_per_pass: float
    forward_ms: float
    decode_ms: float
    host_ms: float
    product_share: float | None
    """Share of the forward's CPU time that matrix products take, from a profiled run; None on the native
    backend."""
    rows_per_forward: float
    first_text_ms: float
    edits_per_100_tokens: float
    same_text_as_ar: float | None
    """Share of the prompts whose answer equals AR's token for token; None for a model without AR, as what
    follows."""
    greedy_agreement: float | None
    """Share of tokens that the base model would have chosen too, given the text so far."""
    base_logprob: float | None
    speed_vs_peer: float = 0.0
    """Against the fastest way of the peer; 0 where none was measured."""


def main(config: BenchConfig) -> dict[str, Any]:
    """Measure, print tables and, last, one JSON document; returns the document."""
    if config.peer:
        # What is missing is said before a model is loaded.
        _peer_file(config)
        require_package()
    llm = LLM(config.model, config=config.engine)
    rows, peer_rows = ([], []) if config.passes_only else _measure_presets(config, llm)
    run_pass(llm)
    peak_mib = _peak_memory_mib()
    passes = _measure_passes(config, llm)
    document = {
        **_environment(config, llm),
        "peak_memory_mib": peak_mib,
        "rows": [*map(asdict, rows), *map(asdict, peer_rows)],
        "passes": [asdict(row) for row in passes],
        "passes_only": config.passes_only,
    }
    if rows:
        _print(rows, peer_rows)
    print_passes(passes)
    print(f"peak memory {peak_mib:.0f} MiB{' with the peer' if peer_rows else ''}")
    if config.output is not None:
        _append(config.output, document)
    print(json.dumps(document))
    return document


def _measure_passes(config: BenchConfig, llm: LLM) -> list[PassRow]:
    if not config.peer:
        return measure_passes(llm, config.repeats)
    setup = Setup(threads=llm.engine.info().threads, max_prompt=1024, max_tokens=1)
    return measure_passes(llm, config.repeats, LlamaCpp(_peer_file(config), setup))


def _peer_file(config: BenchConfig) -> Path:
    """Raises ConfigError where there is none."""
    files = catalog.find(config.model)
    if config.peer not in PEERS:
        raise ConfigError(f"--peer: {config.peer!r} is not known; allowed: {', '.join(PEERS)}.")
    if config.peer_file is None and files.kind != "gguf":
        raise ConfigError(
            f"--peer {config.peer}: {config.model} is no GGUF file, which {config.peer} reads; name one by "
            "--peer-file."
        )
    return config.peer_file or files.base


def _measure_presets(config: BenchConfig, llm: LLM) -> tuple[list[Row], list[PeerRow]]:
    prompts = [_lengthened(_ids(llm, prompt), config.prompt_tokens) for prompt in fixed(config.prompts)]
    presets = config.presets or tuple(llm.model.presets)
    decodings = {preset: resolve(llm.model, preset) for preset in presets}
    sampling = Sampling(max_tokens=config.max_tokens)
    rounds: dict[tuple[str, int], list[_Round]] = {}
    peer_rounds: dict[tuple[str, int], list[PeerRound]] = {}
    with ExitStack() as stack:
        bar = stack.enter_context(
            Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        )
        compared = config.peer and config.peer_file is None
        peers = stack.enter_context(_peers(config, prompts)) if compared else {}
        jobs = [
            (n, name)
            for n in config.concurrency
            for _ in range(config.repeats)
            for name in (*presets, *(name for name, streams in peers if streams == n))
        ]
        _round(llm, prompts[:1], Sampling(max_tokens=8), decodings[presets[0]], 1)
        for concurrency, preset in bar.track(jobs, description="measuring"):
            wanted = _cycled(prompts, concurrency)
            if preset not in decodings:
                peer_round = peers[preset, concurrency].round(wanted)
                peer_rounds.setdefault((preset, concurrency), []).append(peer_round)
                continue
            measured = _round(llm, wanted, sampling, decodings[preset], concurrency)
            rounds.setdefault((preset, concurrency), []).append(measured)
    shares = _product_shares(llm, prompts[0], decodings)
    rows = [_row(llm, key, rounds, _cycled(prompts, key[1]), shares) for key in rounds]
    rows = [replace(row, speed_vs_peer=_ratio_to_best(rounds, peer_rounds, row)) for row in rows]
    peer_rows = [peer_row(*key, found) for key, found in peer_rounds.items()]
    return rows, peer_rows


def _product_shares(llm: LLM, prompt: list[int], decodings: Mapping[str, Decoding]) -> dict[str, float]:
    """Empty on the native backend, whose passes PyTorch's profiler does not see."""
    if llm.engine.info().backend != "torch":
        return {}
    from vermilion.evaluation.product_share import product_share

    return {preset: product_share(llm, prompt, decoding) for preset, decoding in decodings.items()}


def _ids(llm: LLM, prompt: FixedPrompt) -> list[int]:
    if prompt.kind == "chat":
        return llm.chat_prompt([{"role": "user", "content": prompt.text}])
    return llm.tokenizer.encode(prompt.text)


def _lengthened(ids: list[int], length: int) -> list[int]:
    """The prompt over and over, up to `length` tokens; unchanged for 0."""
    return (ids * (length // len(ids) + 1))[:length] if length else ids


def _peers(
    config: BenchConfig, prompts: Sequence[Sequence[int]]
) -> AbstractContextManager[dict[tuple[str, int], LlamaCpp]]:
    setup = Setup(
        threads=config.engine.threads or os.cpu_count() or 1,
        max_prompt=max(len(prompt) for prompt in prompts),
        max_tokens=config.max_tokens,
    )
    return opened(
        config.peer, _peer_file(config), [replace(setup, num_streams=n) for n in config.concurrency]
    )


def _ratio_to_best(
    rounds: Mapping[tuple[str, int], Sequence[_Round]],
    peer_rounds: Mapping[tuple[str, int], Sequence[PeerRound]],
    row: Row,
) -> float:
    """Median over the rounds of our tokens per second over those of the peer's fastest way; 0 without one."""
    theirs = [found for (_, streams), found in peer_rounds.items() if streams == row.concurrency]
    if not theirs:
        return 0.0
    ours = rounds[row.preset, row.concurrency]
    ratios = [
        (mine.tokens / mine.wall_s) / max(one.num_tokens / one.wall_s for one in beside)
        for mine, *beside in zip(ours, *theirs, strict=True)
    ]
    return float(statistics.median(ratios))


def _cycled(prompts: Sequence[list[int]], concurrency: int) -> list[list[int]]:
    """At least as many prompts as run at once."""
    return [prompts[i % len(prompts)] for i in range(max(len(prompts), concurrency))]


def _round(
    llm: LLM, prompts: Sequence[list[int]], sampling: Sampling, decoding: Decoding, concurrency: int
) -> _Round:
    """All prompts once, never more than `concurrency` at a time."""
    engine = llm.engine
    before = engine.timing
    pending = iter(range(len(prompts)))
    programs: dict[str, Any] = {}
    submitted: dict[str, float] = {}
    first: dict[str, float] = {}
    finished: dict[str, Finish] = {}

    def start() -> None:
        index = next(pending, None)
        if index is not None:
            name = str(index)
            submitted[name] = time.perf_counter()
            programs[name] = engine.submit(Request(name, tuple(prompts[index]), sampling, decoding))

    began = time.perf_counter()
    for _ in range(concurrency):
        start()
    while len(finished) < len(prompts):
        for name, event in engine.step():
            if isinstance(event, Text):
                first.setdefault(name, time.perf_counter() - submitted[name])
            elif isinstance(event, Finish):
                finished[name] = event
                start()
    wall_s = time.perf_counter() - began
    names = [str(i) for i in range(len(prompts))]
    answers = [tuple(programs[n].tokens[len(prompts[int(n)]) :]) for n in names]
    usages = [finished[n].usage for n in names]
    return _Round(
        tokens=sum(usage.completion_tokens for usage in usages),
        passes=sum(usage.passes for usage in usages),
        wall_s=wall_s,
        first_text_s=statistics.median(first.values()),
        timing=engine.timing - before,
        answers=answers,
        edits=sum(usage.edits for usage in usages),
    )


def _row(
    llm: LLM,
    key: tuple[str, int],
    rounds: dict[tuple[str, int], list[_Round]],
    prompts: Sequence[list[int]],
    shares: dict[str, float],
) -> Row:
    preset, concurrency = key
    mine = rounds[key]
    baseline = rounds.get(("ar", concurrency), mine)
    speeds = [one.tokens / one.wall_s for one in mine]
    middle = sorted(mine, key=lambda one: one.tokens / one.wall_s)[len(mine) // 2]
    timing, forwards = middle.timing, max(1, middle.timing.forwards)
    spent = timing.forward_s + timing.decode_s
    has_base = llm.engine.traits.has_next_token
    answers = zip(prompts, middle.answers, strict=True)
    opinions = [opinion(llm.engine, prompt, answer) for prompt, answer in answers] if has_base else []
    pairs = zip(middle.answers, baseline[0].answers, strict=True)
    ratios = [
        (one.tokens / one.wall_s) / (base.tokens / base.wall_s)
        for one, base in zip(mine, baseline, strict=True)
    ]
    return Row(
        preset=preset,
        concurrency=concurrency,
        tokens_per_s=statistics.median(speeds),
        tokens_per_s_spread=(max(speeds) - min(speeds)) / statistics.median(speeds),
        speed_vs_ar=statistics.median(ratios),
        tokens_per_pass=middle.tokens / max(1, middle.passes),
        ms_per_pass=1e3 * middle.wall_s / forwards,
        forward_ms=1e3 * timing.forward_s / forwards,
        decode_ms=1e3 * timing.decode_s / forwards,
        host_ms=1e3 * (middle.wall_s - spent) / forwards,
        product_share=shares.get(preset),
        rows_per_forward=timing.rows / forwards,
        first_text_ms=1e3 * statistics.median(one.first_text_s for one in mine),
        edits_per_100_tokens=100 * middle.edits / max(1, middle.tokens),
        same_text_as_ar=statistics.mean(float(a == b) for a, b in pairs) if has_base else None,
        greedy_agreement=statistics.mean(one.greedy_share for one in opinions) if has_base else None,
        base_logprob=statistics.mean(one.mean_logprob for one in opinions) if has_base else None,
    )


def _peak_memory_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _environment(config: BenchConfig, llm: LLM) -> dict[str, Any]:
    return {
        "benchmark": "speed",
        **environment(llm),
        "prompts": config.prompts,
        "max_tokens": config.max_tokens,
        "repeats": config.repeats,
        "peer_file": config.peer_file.name if config.peer_file else "",
    }


def _print(rows: Sequence[Row], peer_rows: Sequence[PeerRow]) -> None:
    table = Table(box=None, header_style="bold")
    columns: dict[str, Callable[[Row], str]] = {
        "preset": lambda r: r.preset,
        "at once": lambda r: str(r.concurrency),
        "tokens/s": lambda r: f"{r.tokens_per_s:.1f}",
        "vs AR": lambda r: f"{r.speed_vs_ar:.2f}x",
        "vs peer": lambda r: f"{r.speed_vs_peer:.2f}x" if r.speed_vs_peer else "",
        "tokens/pass": lambda r: f"{r.tokens_per_pass:.2f}",
        "ms/pass": lambda r: f"{r.ms_per_pass:.1f}",
        "forward": lambda r: f"{r.forward_ms:.1f}",
        "products": lambda r: "" if r.product_share is None else f"{r.forward_ms * r.product_share:.1f}",
        "choosing": lambda r: f"{r.decode_ms:.1f}",
        "host": lambda r: f"{r.host_ms:.1f}",
        "rows": lambda r: f"{r.rows_per_forward:.1f}",
        "first text ms": lambda r: f"{r.first_text_ms:.0f}",
        "same as AR": lambda r: "" if r.same_text_as_ar is None else f"{r.same_text_as_ar:.0%}",
        "greedy": lambda r: "" if r.greedy_agreement is None else f"{r.greedy_agreement:.1%}",
        "logprob": lambda r: "" if r.base_logprob is None else f"{r.base_logprob:.2f}",
    }
    if all(row.product_share is None for row in rows):
        # Tokens are chosen inside the library, in the same call.
        del columns["products"], columns["choosing"]
    for name in columns:
        table.add_column(name, justify="left" if name == "preset" else "right")
    for row in rows:
        table.add_row(*(show(row) for show in columns.values()))
    for peer in peer_rows:
        table.add_row(peer.preset, str(peer.concurrency), f"{peer.tokens_per_s:.1f}")
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _append(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shared = {key: value for key, value in document.items() if key not in ("rows", "passes", "passes_only")}
    with path.open("a") as file:
        kind = {"benchmark": "passes"} if document["passes_only"] else {}
        for row in document["passes" if kind else "rows"]:
            file.write(json.dumps({**shared, **kind, **row}) + "\n")
