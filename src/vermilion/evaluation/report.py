"""`vermilion report`: autoregression beside diffusion, from the rows that were measured, as one HTML file."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vermilion.errors import ConfigError
from vermilion.evaluation import plots
from vermilion.evaluation.results import Row, latest, read_rows
from vermilion.evaluation.table import flat

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #222 }
h1, h2 { font-weight: 600 } h2 { margin-top: 2.5rem; border-bottom: 2px solid #d9381e }
table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums }
div.wide { overflow-x: auto }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } svg { max-width: 100%; height: auto }
p.note { color: #555 } code { font-size: 12px }
@media (prefers-color-scheme: dark) { body { background: #fff } }
"""
_SECTIONS = (
    ("Speed", "Streams of fixed prompts side by side in one process. More on speed: vermilion bench."),
    ("First settled text", "Seconds until the first text that will not change. Medians."),
    ("Whole answer", "Seconds for a whole answer of fixed length. Medians, in the same minutes."),
    ("Passes", "Completion tokens over all forwards after the prefill, denoise, commit and verify alike."),
    ("Quality", "Text that a pass settles more of is only worth it where it stays good: likely to the base, "
     "without repeating itself. lossless text is the base's own, token for token."),
    ("Denoiser", "How far the base follows what the denoiser drafts, on text that the base wrote itself."),
    ("Right answers", "Tasks with a known answer; programs ran in a sandbox."),
    ("Cost", "What a million tokens take of the machine they were measured on."),
)  # fmt: skip


def write(results: Path, output: Path, price_per_hour: float | None = None) -> int:
    """Write the report of all *.jsonl in `results` (or of that one file); how many rows it shows.

    Raises ConfigError where there is no row of `vermilion eval` or `vermilion bench`, or no matplotlib.
    """
    files = sorted(results.glob("*.jsonl")) if results.is_dir() else [results]
    rows = [row for file in files for row in read_rows(file)]
    measured = latest([row for row in rows if row.get("benchmark") == "eval"])
    speeds = newest_run([row for row in rows if row.get("benchmark") == "speed"])
    if not measured and not speeds:
        raise ConfigError(
            f"{results}: no rows to report; measure some with vermilion eval or vermilion bench --output."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(measured, speeds, price_per_hour), encoding="utf-8")
    return len(measured) + len(speeds)


def newest_run(rows: Sequence[Row]) -> list[Row]:
    """The rows of the last commit that `bench` was run on: rows of one run can be compared."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row.get("commit") == rows[-1].get("commit") and row.get("device") == rows[-1].get("device"):
            found[row["preset"], row["concurrency"]] = row
    return list(found.values())


def page(rows: Sequence[Row], speeds: Sequence[Row], price_per_hour: float | None) -> str:
    """The whole document, self-contained."""
    first, whole = plots.latency(rows)
    drawn = {
        "Speed": plots.speed(speeds),
        "First settled text": first,
        "Whole answer": whole,
        "Passes": plots.passes(rows),
        "Quality": plots.quality_curve(rows),
        "Denoiser": plots.agreement(rows),
        "Right answers": plots.scores(rows),
        "Cost": plots.cost(speeds, price_per_hour),
    }
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Autoregression and diffusion</title><style>{_STYLE}</style>",
        "<h1>Autoregression beside diffusion</h1>",
        *_environment([*rows, *speeds]),
    ]
    for title, note in _SECTIONS:
        if drawn[title]:
            parts.append(f"<h2>{title}</h2><p class=note>{html.escape(note)}</p>{drawn[title]}")
    parts.append("<h2>All figures</h2>")
    for task in dict.fromkeys(row["task"] for row in rows):
        parts += _table(task, [row for row in rows if row["task"] == task])
    return "\n".join([*parts, "</html>\n"])


def _environment(rows: Sequence[Row]) -> Iterator[str]:
    names = ("model", "device", "threads", "dtype", "torch", "commit", "date")
    seen = {
        name: list(dict.fromkeys(str(row[name]) for row in rows if row.get(name) not in (None, "")))
        for name in names
    }
    yield (
        "<p class=note>"
        + "; ".join(f"{name} {html.escape(', '.join(values))}" for name, values in seen.items() if values)
        + ".</p>"
    )


def _table(task: str, rows: Sequence[Row]) -> Iterator[str]:
    names = list(dict.fromkeys(name for row in rows for name in flat(row["figures"])))
    yield f"<h3>{html.escape(task)}</h3><div class=wide><table><tr><th>sampler"
    yield "".join(f"<th>{html.escape(name.replace('_', ' '))}" for name in names)
    for row in rows:
        figures = flat(row["figures"])
        cells = "".join(f"<td>{_cell(figures.get(name))}" for name in names)
        yield f"<tr><td title='{html.escape(_environment_of(row))}'>{html.escape(row['sampler'])}{cells}"
    yield "</table></div>"
    for command in dict.fromkeys(row.get("command", "") for row in rows):
        yield f"<p class=note><code>{html.escape(command)}</code></p>"


def _environment_of(row: Mapping[str, Any]) -> str:
    return json.dumps(
        {name: row.get(name) for name in ("weights", "limit", "seed", "date", "commit", "device")}
    )


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " ".join(_cell(one) for one in value)
    return f"{value:.3g}" if isinstance(value, float) else html.escape("" if value is None else str(value))
