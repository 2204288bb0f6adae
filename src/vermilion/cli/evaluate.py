"""`vermilion eval` (samplers times tasks, as tables and rows of JSON) and `vermilion report`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

_ROWS = Path("bench/results/eval.jsonl")


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """What to measure."""

    tasks: Annotated[str, typer.Option(help="Separated by commas, or all; --list names them.")] = (
        "likelihood,drafting"
    )
    samplers: Annotated[
        str, typer.Option(help="Separated by blanks: [MODEL@]PRESET[:KNOB=VALUE,...]; curve is a set.")
    ] = "lossless"
    model: Annotated[str, typer.Option(help="A name of `vermilion models`, or a folder.")] = (
        "smollm2-135m-diffusion"
    )
    denoiser: Annotated[
        Path | None, typer.Option(help="An adapter folder, such as a checkpoint's, for the model's own.")
    ] = None
    held_out: Annotated[
        list[Path] | None, typer.Option(help="A corpus, or a folder or file of text; repeatable.")
    ] = None
    limit: Annotated[int, typer.Option(min=1, help="Most requests or texts of each task.")] = 8
    max_tokens: Annotated[int, typer.Option(min=8, help="Most tokens of free answers.")] = 96
    block_length: Annotated[
        int, typer.Option(min=2, max=64, help="Block length of the likelihood and drafting tasks.")
    ] = 8
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling and of the choice of examples.")] = 0
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto"
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float64.")] = "auto"
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 for all cores.")] = 0
    output: Annotated[Path | None, typer.Option(help="JSON Lines file that takes the rows.")] = None
    plot: Annotated[
        Path | None, typer.Option(help="SVG file for tokens per pass against quality, from the quality task.")
    ] = None
    again: Annotated[bool, typer.Option("--again", help="Measure again what already has a row.")] = False
    names: Annotated[bool, typer.Option("--list", help="Name the tasks, and stop.")] = False


def evaluate(options: EvalOptions) -> None:
    """Measure samplers on tasks. Prints tables and appends JSON rows; what has a row is not redone."""
    from rich.console import Console

    from vermilion.config import EngineConfig, build
    from vermilion.evaluation.plan import Plan
    from vermilion.evaluation.plan import evaluate as measure
    from vermilion.evaluation.sampler import parse
    from vermilion.evaluation.suite import TASKS, chosen
    from vermilion.evaluation.table import tables
    from vermilion.evaluation.task import Setting

    if options.names:
        for task in TASKS.values():
            print(f"{task.name:<12}{task.about}")
        return
    setting = Setting(
        options.limit,
        options.seed,
        options.max_tokens,
        options.block_length,
        tuple(options.held_out or ()),
    )
    plan = Plan(
        specs=parse(options.samplers, options.model),
        tasks=chosen(options.tasks),
        setting=setting,
        output=options.output or (_ROWS if _ROWS.parent.is_dir() else Path(_ROWS.name)),
        denoiser=options.denoiser,
        again=options.again,
        engine=build(
            EngineConfig, {"device": options.device, "dtype": options.dtype, "threads": options.threads}
        ),
    )
    rows = measure(plan, Console(stderr=True))
    out = Console(width=None if sys.stdout.isatty() else 200)
    for table in tables(rows):
        out.print(table)
    print(f"rows are in {plan.output}", file=sys.stderr)
    if options.plot is not None:
        _draw(options.plot, rows)


def _draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    from vermilion.errors import BadParameter
    from vermilion.evaluation.plots import quality_curve

    drawn = quality_curve(rows)
    if not drawn:
        raise BadParameter("--plot", str(path), "together with --tasks quality")
    path.write_text(drawn + "\n", encoding="utf-8")


def report(
    results: Annotated[
        Path, typer.Option(help="A folder of JSON Lines files, or one of them.")
    ] = _ROWS.parent,
    output: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="What an hour of the machine costs, in any currency.")
    ] = None,
) -> None:
    """Write the rows of eval and bench as an HTML page. It sets diffusion beside autoregression."""
    from vermilion.evaluation.report import write

    count = write(results, output, price_per_hour)
    print(f"{count} rows", file=sys.stderr)
    print(output)
