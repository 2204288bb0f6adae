"""The report: one file that needs nothing else, drawn from the rows alone."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from vermilion.cli import evaluate
from vermilion.errors import BadParameter, ConfigError
from vermilion.evaluation import plots
from vermilion.evaluation.report import newest_run, write
from vermilion.evaluation.results import latest


def row(task: str, sampler: str, **figures: Any) -> dict[str, Any]:
    return {
        "benchmark": "eval", "task": task, "sampler": sampler, "weights": "abc123def456", "limit": 3,
        "seed": 0, "max_tokens": 40, "block_length": 4, "held_out": [], "device": "A <CPU> & more",
        "commit": "c0ffee", "model": "m", "command": "vermilion eval --tasks x", "figures": figures,
    }  # fmt: skip


def speed(preset: str, tokens_per_s: float, commit: str = "new") -> dict[str, Any]:
    return {
        "benchmark": "speed", "preset": preset, "concurrency": 1, "tokens_per_s": tokens_per_s,
        "commit": commit, "device": "cpu",
    }  # fmt: skip


KINDS = {
    "chat": {"tokens_per_pass": 1.2},
    "code": {"tokens_per_pass": 1.9},
    "prose": {"tokens_per_pass": 1.1},
}
ROWS = [
    row("quality", "ar", tokens_per_pass=1.0, base_nll=0.6, distinct_3=0.9, by_group=KINDS),
    row("quality", "threshold:threshold=0.7,block_length=8", tokens_per_pass=1.7, base_nll=1.4,
        distinct_3=0.8, by_group=KINDS),
    row("drafting", "m", block_4={"by_group": {"chat": {"agreement": [0.8, 0.5, 0.2]}}, "accepted": 1.2}),
    row("latency", "fast", first_text_s=0.1, first_text_ar_s=0.2, whole_answer_s=3.0, whole_answer_ar_s=4.0),
    row("humaneval", "fast", pass_at_1=0.25, sandbox="namespaces"),
    row("json", "fast", valid=1.0, right=0.5),
]  # fmt: skip


class Links(HTMLParser):
    """Every address that the document would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.headings: list[str] = []
        self._in_heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "object"):
            self.found.append(tag)
        self.found += [
            value or "" for name, value in attrs if name in ("src", "href") and not str(value).startswith("#")
        ]
        self._in_heading = tag == "h2"

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings.append(data)
            self._in_heading = False


def written(tmp_path: Path, rows: list[dict[str, Any]], **given: Any) -> str:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    write(tmp_path, tmp_path / "out" / "report.html", **given)
    return (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_the_report_is_one_file_with_a_plot_for_every_section(tmp_path: Path) -> None:
    text = written(tmp_path, [*ROWS, speed("ar", 30.0), speed("fast", 45.0)])
    links = Links()
    links.feed(text)
    assert links.found == []
    assert links.headings == [
        "Speed", "First settled text", "Whole answer", "Passes", "Quality", "Denoiser", "Right answers",
        "Cost", "All figures",
    ]  # fmt: skip
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 8
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert "A &lt;CPU&gt; &amp; more" in text and "vermilion eval --tasks x" in text


def test_what_was_not_measured_has_no_section(tmp_path: Path) -> None:
    links = Links()
    links.feed(written(tmp_path, ROWS[3:4]))
    assert links.headings == ["First settled text", "Whole answer", "All figures"]
    with pytest.raises(ConfigError, match="no rows"):
        write(tmp_path / "empty", tmp_path / "x.html")


def test_the_last_row_of_a_measurement_counts() -> None:
    older, newer = row("json", "fast", right=0.1), row("json", "fast", right=0.9)
    other = {**row("json", "fast", right=0.5), "weights": "other"}
    assert [one["figures"]["right"] for one in latest([older, other, newer])] == [0.9, 0.5]
    rows = [speed("ar", 1.0, "old"), speed("ar", 2.0), speed("fast", 3.0), speed("ar", 4.0)]
    assert [one["tokens_per_s"] for one in newest_run(rows)] == [4.0, 3.0]


def test_cost_is_in_hours_or_in_money() -> None:
    hours, money = plots.cost([speed("ar", 50.0)], None), plots.cost([speed("ar", 50.0)], 2.0)
    assert "machine hours per million tokens" in hours and "price per million tokens" in money
    # 1e6 tokens / 50 per s = 5.56 h; the axis reaches past that, or past twice that in money.
    assert hours != money


def test_the_same_rows_give_the_same_file(tmp_path: Path) -> None:
    assert written(tmp_path, ROWS) == written(tmp_path, ROWS)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("lossless", "lossless"),
        ("threshold:threshold=0.7,block_length=8", "threshold .7"),
        ("some/folder@fast", "folder fast"),
    ],
)
def test_names_in_plots_are_short(name: str, shown: str) -> None:
    assert plots.short(name) == shown


def test_a_plot_of_quality_needs_the_quality_task(tmp_path: Path) -> None:
    evaluate._draw(tmp_path / "curve.svg", ROWS)
    ElementTree.parse(tmp_path / "curve.svg")
    with pytest.raises(BadParameter, match="quality"):
        evaluate._draw(tmp_path / "curve.svg", ROWS[3:])
