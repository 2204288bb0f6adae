"""Rows of results: one JSON object a line, keyed by what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vermilion.errors import ConfigError
from vermilion.text import split_lines

KEY = ("task", "sampler", "weights", "limit", "seed", "max_tokens", "block_length", "held_out")
"""What makes two rows the same measurement."""
Row = Mapping[str, Any]


def key_of(row: Row) -> str:
    """Equal for two rows of the same measurement."""
    return json.dumps([row.get(name) for name in KEY])


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON Lines file; none where there is no file. Raises ConfigError for a broken one."""
    if not path.exists():
        return []
    rows: list[Row] = []
    for number, line in enumerate(split_lines(path.read_text(encoding="utf-8")), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ConfigError(f"{path}: line {number} is not a JSON object; mend or remove it.")
        rows.append(row)
    return rows


def append(path: Path, row: Row) -> None:
    """Append one line and flush it to disk, so that an interrupted run keeps its rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()


def latest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each measurement, in the order in which they first came."""
    return list({key_of(row): row for row in rows}.values())
