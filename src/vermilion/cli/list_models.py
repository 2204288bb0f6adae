"""`vermilion models`: the catalogue, what each model needs, what this machine has room for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vermilion.cli.printing import console, print_plain

if TYPE_CHECKING:
    from vermilion.models.model_facts import ModelFacts

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_WIDTH = 130
"""Of the table where the output is no terminal."""


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    here: Annotated[bool, typer.Option("--here", help="Only those on this disk.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the models and what they need.

    Shows what fits this machine, and which are on this disk.
    """
    if context.invoked_subcommand is not None:
        return
    from vermilion.models import catalog
    from vermilion.models.model_facts import facts_of, machine_json

    rows = [facts_of(entry) for entry in catalog.available() if entry.pulled or not here]
    if as_json:
        listed = {"machine": machine_json(), "models": [row.as_json() for row in rows]}
        print_plain(json.dumps(listed, indent=1) + "\n")
    else:
        _print_table(rows)


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="A name of `vermilion models`, or a folder.")],
    as_json: AsJson = False,
) -> None:
    """Everything that is known of one model."""
    from vermilion.models.model_facts import facts_of_name

    row = facts_of_name(model)
    if as_json:
        print_plain(json.dumps(row.as_json(), indent=1) + "\n")
        return
    for name, value in _described(row):
        if value:
            print_plain(f"{name:<16}{value}\n")


def _print_table(rows: Sequence[ModelFacts]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vermilion.models import machine
    from vermilion.models.memory import FORMATS

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("model", "family", "size", "licence"):
        table.add_column(title, no_wrap=title != "licence")
    for title in (*FORMATS, "disk"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("preset", no_wrap=True)
    for row in rows:
        needs = [_need(row, kind) for kind in FORMATS]
        disk = "here" if row.pulled else size_text(row.size_bytes)
        preset = row.default_preset if not row.obstacle else "not supported"
        cells = (
            row.name,
            row.family,
            count_text(row.num_parameters),
            row.licence or "unknown",
            *needs,
            disk,
            preset,
        )
        table.add_row(*map(Text, cells), style="dim" if row.obstacle else "")
    out = console() if sys.stdout.isatty() else Console(width=_WIDTH, highlight=False)
    out.print(table)
    gpu = machine.gpu_memory_bytes()
    here = f"{size_text(machine.memory_bytes())}{f', GPU {size_text(gpu)}' if gpu else ''}"
    out.print(
        "\nq4, q8, bf16: memory for weights in that format and a cache of 8,320 tokens; * what does not fit "
        f"this machine ({here}).\nvermilion pull NAME fetches a model, owner/name any other of the hub; "
        "vermilion models show NAME tells more.",
        style="dim", markup=False, soft_wrap=True,
    )  # fmt: skip


def _described(row: ModelFacts) -> Iterator[tuple[str, str]]:
    yield "name", row.name
    yield "about", row.description
    yield "repository", f"{row.repository} at {row.revision}" if row.repository else ""
    yield "family", row.family
    yield "parameters", count_text(row.num_parameters)
    yield "licence", row.licence or "not known"
    yield "context", f"{row.context_length:,} tokens" if row.context_length else ""
    yield "default preset", row.default_preset
    yield "on disk", size_text(row.size_bytes) if row.pulled else f"no; {size_text(row.size_bytes)} to fetch"
    for kind, needed in row.memory_bytes.items():
        fits = {True: "fits this machine", False: "does not fit this machine", None: ""}[row.fits(kind)]
        yield f"memory, {kind}", f"{size_text(needed)}  {fits}"
    if row.cache_bytes_per_token:
        yield "cache", f"{size_text(1000 * row.cache_bytes_per_token)} per 1,000 tokens, in the memory above"
    yield "not supported", row.obstacle


def _need(row: ModelFacts, kind: str) -> str:
    needed = row.memory_bytes.get(kind)  # type: ignore[call-overload]
    return f"{size_text(needed)}{'*' if row.fits(kind) is False else ''}" if needed else ""  # type: ignore[arg-type]


def size_text(num_bytes: int) -> str:
    """Bytes for people, in powers of ten as disks and the hub count them."""
    if not num_bytes:
        return ""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def count_text(number: int) -> str:
    """Parameters for people: 8.2B, 135M."""
    if not number:
        return ""
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.0f}M"
