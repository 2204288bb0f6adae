"""Samplers times tasks: one row each, appended to a file; what has a row is not measured again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vermilion.config import EngineConfig
from vermilion.evaluation.environment import command, environment, fingerprint
from vermilion.evaluation.results import Row, append, key_of, read_rows
from vermilion.evaluation.sampler import Sampler, Spec, load
from vermilion.evaluation.task import EvalTask, Setting


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, and where the rows go."""

    specs: Sequence[Spec]
    tasks: Sequence[EvalTask]
    setting: Setting
    output: Path
    denoiser: Path | None = None
    again: bool = False
    """Measure what has a row already once more."""
    engine: EngineConfig = field(default_factory=EngineConfig)


def evaluate(plan: Plan, console: Console) -> list[Row]:
    """The rows of the plan, old and new, in its order. Raises the errors of models and tasks."""
    known = {} if plan.again else {key_of(row): row for row in read_rows(plan.output)}
    rows: list[Row] = []
    for model in dict.fromkeys(spec.model for spec in plan.specs):
        mine = [spec for spec in plan.specs if spec.model == model]
        wanted = list(_wanted(plan, mine, fingerprint(model, plan.denoiser)))
        missing = [one for one in wanted if key_of(one[0]) not in known]
        known |= _measured(plan, model, missing, console) if missing else {}
        rows += [known[key_of(head)] for head, _, _ in wanted]
    return rows


def _wanted(
    plan: Plan, specs: Sequence[Spec], weights: str
) -> Iterator[tuple[dict[str, Any], Spec, EvalTask]]:
    """The head of each row, with what measures it; figures of the model alone are wanted once."""
    setting = plan.setting
    for task in plan.tasks:
        for spec in specs[:1] if task.of_model else specs:
            head = {
                "benchmark": "eval",
                "task": task.name,
                "sampler": spec.model if task.of_model else spec.name,
                "weights": weights,
                "limit": setting.limit,
                "seed": setting.seed,
                "max_tokens": setting.max_tokens,
                "block_length": setting.block_length,
                "held_out": [path.name for path in setting.held_out],
            }
            yield head, spec, task


def _measured(
    plan: Plan, model: str, missing: Sequence[tuple[dict[str, Any], Spec, EvalTask]], console: Console
) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    with console.status(f"Loading {model}"):
        llm = load(model, plan.denoiser, plan.engine)
    where = environment(llm)
    for number, (head, spec, task) in enumerate(missing, 1):
        with _bar(console, f"{number}/{len(missing)} {head['sampler']} {task.name}") as watch:
            sampler = Sampler(spec.name, llm, spec.decoding(llm.model), plan.setting.seed)
            figures = task.measure(sampler, replace(plan.setting, watch=watch))
        row = {**head, **where, "command": command(), "figures": figures}
        append(plan.output, row)
        rows[key_of(row)] = row
    return rows


class _Bar:
    """A task's progress on a terminal."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=None)

    def begin(self, total: int) -> None:
        self._progress.update(self._task, total=total)

    def step(self) -> None:
        self._progress.advance(self._task)


@contextmanager
def _bar(console: Console, title: str) -> Iterator[_Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Bar(progress, title)
