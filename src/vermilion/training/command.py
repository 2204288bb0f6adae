"""`vermilion convert`: a recipe file in, a model folder out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vermilion.config import load

if TYPE_CHECKING:
    from vermilion.training.recipe import Recipe

_EVERY = 50
"""Steps between two lines where there is no terminal."""
_SHOWN = ("loss", "right", "block_length", "accepted")


def convert(
    recipe: Annotated[Path, typer.Argument(help="A TOML file, such as recipes/toy.toml.")],
    change: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, e.g. steps=200; repeatable.")
    ] = None,
) -> None:
    """Turn a causal model into a diffusion model; Ctrl-C saves, and the same command goes on."""
    from vermilion.training import convert as conversion
    from vermilion.training.recipe import Recipe

    settings = load(Recipe, recipe, change or ())
    shown = _Progress(settings) if sys.stderr.isatty() else nullcontext(_plain)
    with shown as on_step:
        folder, progress = conversion.convert(settings, on_step)
    print(f"{progress.step} steps, {progress.tokens:,} tokens, {progress.seconds:.0f} s", file=sys.stderr)
    print(folder)


def _plain(figures: Mapping[str, float]) -> None:
    if "held_out_nll" in figures or figures["step"] % _EVERY == 1:
        print(f"step {figures['step']}: {_line(figures)}", file=sys.stderr, flush=True)


def _line(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {figures[name]:.4g}" for name in _SHOWN if name in figures)


class _Progress:
    """A bar on a terminal's stderr."""

    def __init__(self, recipe: Recipe) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._recipe = recipe
        self._bar = Progress(console=Console(stderr=True))
        self._task = self._bar.add_task("starting", total=1.0)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, figures: Mapping[str, float]) -> None:
        steps, minutes = self._recipe.steps, self._recipe.minutes
        by_steps = figures["step"] / steps if steps else 0.0
        by_time = figures["seconds"] / (60 * minutes) if minutes else 0.0
        self._bar.update(self._task, completed=max(by_steps, by_time), description=_line(figures))
