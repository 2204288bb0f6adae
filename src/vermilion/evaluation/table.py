"""Rows of results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

_NARROW = 12
"""Columns of one table; more figures than that are in the row's JSON."""


def tables(rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """One table per task: a line per sampler, a column per figure that is one number or a short list."""
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        names = list(dict.fromkeys(name for row in mine for name in flat(row["figures"])))[:_NARROW]
        table = Table(title=task, title_justify="left", box=None, header_style="bold")
        table.add_column("sampler")
        for name in names:
            table.add_column(name.replace("_", " "), justify="right")
        for row in mine:
            figures = flat(row["figures"])
            table.add_row(row["sampler"], *(_shown(figures.get(name)) for name in names))
        yield table


def flat(figures: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested figures under joined names; those of groups are left out."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            if name != "by_group":
                found |= flat(value, f"{before}{name} ")
        else:
            found[f"{before}{name}"] = value
    return found


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_shown(one).removeprefix("0") or "0" for one in value)
    if isinstance(value, float):
        return f"{value:.2f}"
    return "" if value is None else str(value)
