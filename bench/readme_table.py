"""Writes README's table of speeds from the newest run in bench/results/speed.jsonl.

Run it after `scripts/bench`: python bench/readme_table.py. With --check it changes nothing and fails where
README shows other figures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vermilion.evaluation.report import newest_run

ROOT = Path(__file__).resolve().parent.parent
ROWS, README = ROOT / "bench" / "results" / "speed.jsonl", ROOT / "README.md"
START, END = "<!-- speed table: made by bench/readme_table.py -->", "<!-- end of speed table -->"

Row = Mapping[str, Any]


def table(rows: Sequence[Row]) -> str:
    """Our presets, then the peer's ways to run, at each number of streams; and where it was measured."""
    names = "streams", "tokens/s", "vs `ar`", "vs llama.cpp", "tokens per pass", "ms per pass", "text as `ar`"
    head = f"| | {' | '.join(names)} |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: (row["concurrency"], "ms_per_pass" not in row)):
        lines.append(_ours(row) if "ms_per_pass" in row else _peer(row))
    first = rows[0]
    source = (
        f"*{first['device']}, {first['threads']} threads, commit {first['commit']}, {first['date']}: medians "
        f"of {first['repeats']} alternating rounds in one run over {first['prompts']} prompts (chat, code, "
        f"prose), {first['max_tokens']} tokens each. Ratios are medians of ratios within a round; llama.cpp "
        "is the fastest of its ways in that round.*"
    )
    return "\n".join([*lines, "", source])


def _ours(row: Row) -> str:
    peer = f"{row['speed_vs_peer']:.2f}x" if row.get("speed_vs_peer") else "-"
    cells = [
        f"`{row['preset']}`", row["concurrency"], f"{row['tokens_per_s']:.0f}",
        f"{row['speed_vs_ar']:.2f}x", peer,
        f"{row['tokens_per_pass']:.2f}", f"{row['ms_per_pass']:.1f}", f"{100 * row['same_text_as_ar']:.0f} %",
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def _peer(row: Row) -> str:
    return f"| {row['preset']} | {row['concurrency']} | {row['tokens_per_s']:.0f} | | | | | |"


def updated(readme: str, rows: Sequence[Row]) -> str:
    """README with the table between its two marks made anew."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table(rows)}\n{END}{after}"


def main() -> None:
    rows = newest_run([json.loads(line) for line in ROWS.read_text(encoding="utf-8").split("\n") if line])
    readme = README.read_text(encoding="utf-8")
    wanted = updated(readme, rows)
    if "--check" not in sys.argv:
        README.write_text(wanted, encoding="utf-8")
    elif wanted != readme:
        sys.exit("README.md shows other speeds than the newest run. Run: python bench/readme_table.py")


if __name__ == "__main__":
    main()
