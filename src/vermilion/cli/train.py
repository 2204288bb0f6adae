"""`vermilion convert` and `vermilion train`: a recipe in, a model or an adapter out."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vermilion.config import build, merge, read

if TYPE_CHECKING:
    from vermilion.training.run import Progress

_EVERY = 50
"""Steps between two lines where there is no terminal."""
_SHOWN = ("loss", "right", "block_length", "accepted", "tokens_per_cycle", "held_out_next")

Change = Annotated[list[str] | None, typer.Option("--set", help="One setting, e.g. steps=200; repeatable.")]


def convert(
    recipe: Annotated[Path, typer.Argument(help="A TOML file, such as recipes/toy.toml.")],
    change: Change = None,
) -> None:
    """Turn a causal model into a diffusion model. Or train a drafter for it, where the recipe says so. Ctrl-C
    saves; the same command resumes."""
    from vermilion.training import convert as conversion
    from vermilion.training.recipe import Recipe

    given = merge(read(recipe), change or ())
    if given.get("method") == "drafter":
        from vermilion.training.drafter_recipe import DrafterRecipe
        from vermilion.training.drafter_run import train_drafter

        drafter_settings = build(DrafterRecipe, given)
        with _reporter() as on_step:
            folder, progress = train_drafter(drafter_settings, on_step)
    else:
        settings = build(Recipe, conversion.with_defaults(given))
        with _reporter() as on_step:
            folder, progress = conversion.convert(settings, on_step)
    _finished(folder, progress)


def train(
    examples: Annotated[
        Path, typer.Argument(help="JSON Lines of {prompt, response} or {messages}, or a corpus folder.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")],
    model: Annotated[str | None, typer.Option(help="A name of `vermilion models`, or a folder.")] = None,
    validation: Annotated[
        Path | None, typer.Option(help="Examples to validate on; else a tenth of the others.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="A TOML file, such as recipes/fine-tune.toml.")] = None,
    change: Change = None,
) -> None:
    """Fine-tune a model on examples. Ctrl-C saves; the same command resumes."""
    from vermilion.training import finetune
    from vermilion.training.recipe import Recipe

    given = finetune.with_defaults(read(recipe) if recipe else {})
    given["output"] = str(output)
    if model is not None:
        given["base"] = model
    given["data"]["sources"] = [{"path": str(examples)}]
    if validation is not None:
        given["data"]["validation"] = [{"path": str(validation)}]
    settings = build(Recipe, merge(given, change or ()))
    with _reporter() as on_step:
        folder, progress = finetune.tune(settings, on_step)
    _finished(folder, progress)


def _finished(folder: Path, progress: Progress) -> None:
    if os.environ.get("RANK", "0") == "0":
        best = f", best at step {progress.best_step}" if progress.best is not None else ""
        print(
            f"{progress.step} steps, {progress.tokens:,} tokens, {progress.seconds:.0f} s{best}",
            file=sys.stderr,
        )
        print(folder)


def _reporter() -> _Progress | nullcontext:  # type: ignore[type-arg]
    return _Progress() if sys.stderr.isatty() else nullcontext(_plain)


def _plain(figures: Mapping[str, float]) -> None:
    if any(name.startswith("held_out") for name in figures) or figures["step"] % _EVERY == 1:
        print(f"step {figures['step']}: {_line(figures)}", file=sys.stderr, flush=True)


def _line(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {figures[name]:.4g}" for name in _SHOWN if name in figures)


class _Progress:
    """A bar on a terminal's stderr, with the time that is left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("starting", total=1.0)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, figures: Mapping[str, float]) -> None:
        self._bar.update(self._task, completed=figures["done"], description=_line(figures))
