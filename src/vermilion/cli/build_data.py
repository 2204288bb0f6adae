"""`vermilion data`: build training data from a recipe, let the base answer prompts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vermilion.config import load

if TYPE_CHECKING:
    from rich.progress import Progress

data = typer.Typer(help="Build training data; let the base model write some.", no_args_is_help=True)

_Recipe = Annotated[Path, typer.Argument(help="A TOML file, such as recipes/data.toml.")]
_Change = Annotated[list[str] | None, typer.Option("--set", help="One setting, e.g. seed=1; repeatable.")]


@data.command()
def build(recipe: _Recipe, change: _Change = None) -> None:
    """Build token shards with a manifest from a recipe. After Ctrl-C the same command resumes."""
    from vermilion.data import pipeline as building

    settings = load(building.DataRecipe, recipe, change or ())
    with _progress() as bar:
        task = bar.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        manifest = building.build(settings, show)
    for name, corpus in manifest["corpora"].items():
        print(f"{name}: {corpus['documents']:,} documents, {corpus['tokens']:,} tokens", file=sys.stderr)
    print(settings.output)


@data.command()
def answers(
    recipe: Annotated[Path | None, typer.Argument(help="A TOML file with the settings.")] = None,
    change: _Change = None,
) -> None:
    """Generate the base model's answers to prompts, as JSON Lines. After Ctrl-C the same command resumes."""
    from vermilion.data import answers as asking

    settings = load(asking.AnswersConfig, recipe, change or ())
    with _progress() as bar:
        task = bar.add_task("starting", total=settings.num_answers or None)

        def show(asked: asking.AnswerCounts) -> None:
            said = f"{asked.kept:,} answers, {asked.num_tokens:,} tokens, {asked.refused:,} refused"
            bar.update(task, description=said, completed=asked.kept + asked.refused)

        asked = asking.generate(settings, None, show)
    said = f"{asked.kept:,} answers, {asked.num_tokens:,} tokens; {asked.refused:,} refused"
    print(said, file=sys.stderr)
    print(settings.output)


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal's stderr; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        yield bar
