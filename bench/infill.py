"""Measure infill: gaps cut out of Python source and prose, filled with and without the text to their right.

    python bench/infill.py --gaps 60 --arms left,told,default [--out bench/results/infill.jsonl]

Gaps come from the running Python's standard library and its language reference (`pydoc_data.topics`), by a
fixed seed: `line` a line's rest behind its first word, `inside` a piece of a line with more of it to the
right, `lines` two whole lines, `prose` a few words of a sentence. Arms: `left` plain continuation up to the
line's end (two lines' end for a gap that begins with a line break), which knows as much of where to stop as
the engine's rule for continuations; `told` the same, but cut at the true length where the gap does not end
with its line, which no editor can do; `default` the engine with the text to the right. The constants of
`decoding/infill.py` were chosen on seed 1. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import random
import statistics
import sysconfig
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from pydoc_data.topics import topics

import torch

from vermilion.engine.llm import LLM
from vermilion.types import Finish, Sampling, Text

MODULES = (
    "calendar", "textwrap", "shlex", "fractions", "csv", "cmd", "statistics", "gzip", "sched", "bisect",
)  # fmt: skip
TOPICS = ("assignment", "class", "naming", "import", "exceptions", "lambda", "if")
MAX_TOKENS = 48
CONTEXT_CHARACTERS = (700, 300)


@dataclass(frozen=True, slots=True)
class Hole:
    """A text without its middle."""

    kind: str
    before: str
    middle: str
    after: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one hole was filled."""

    kind: str
    text: str
    exact: bool
    similarity: float
    parses: bool | None
    tokens: int
    passes: int
    wall_s: float
    joined: bool


def holes(count: int, seed: int = 0) -> list[Hole]:
    """`count` holes, the four kinds in turn."""
    rng = random.Random(seed)
    makers = [_line, _inside, _lines, _prose]
    return [makers[i % len(makers)](rng) for i in range(count)]


def _source(rng: random.Random) -> tuple[list[str], int]:
    """A module's lines and the number of a statement among them."""
    text = (Path(sysconfig.get_path("stdlib")) / f"{rng.choice(MODULES)}.py").read_text()
    lines = text.splitlines(keepends=True)
    code = {
        node.lineno - 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Assign | ast.Return | ast.If | ast.Expr | ast.For)
        and node.lineno == getattr(node, "end_lineno", 0)
    }
    usable = [i for i in sorted(code) if 12 < i < len(lines) - 8 and len(lines[i].split()) >= 3]
    return lines, rng.choice(usable)


def _cut(kind: str, text: str, start: int, end: int) -> Hole:
    left, right = CONTEXT_CHARACTERS
    begin = text.find("\n", max(0, start - left)) + 1 if start > left else 0
    return Hole(kind, text[min(begin, start) : start], text[start:end], text[end : end + right])


def _line(rng: random.Random) -> Hole:
    lines, at = _source(rng)
    start = sum(map(len, lines[:at]))
    line = lines[at]
    word = len(line) - len(line.lstrip()) + len(line.split()[0])
    return _cut("line", "".join(lines), start + word, start + len(line) - 1)


def _inside(rng: random.Random) -> Hole:
    lines, at = _source(rng)
    start, line = sum(map(len, lines[:at])), lines[at].rstrip("\n")
    indent = len(line) - len(line.lstrip())
    spaces = [i for i in range(indent + 1, len(line)) if line[i] == " "] + [len(line) - 1]
    first = rng.randrange(len(spaces) - 1)
    last = rng.randrange(first + 1, min(first + 4, len(spaces)))
    return _cut("inside", "".join(lines), start + spaces[first], start + spaces[last])


def _lines(rng: random.Random) -> Hole:
    lines, at = _source(rng)
    start = sum(map(len, lines[:at]))
    return _cut("lines", "".join(lines), start - 1, start + len(lines[at]) + len(lines[at + 1]) - 1)


def _prose(rng: random.Random) -> Hole:
    text = topics[rng.choice(TOPICS)]
    words = [i for i in range(300, len(text) - 100) if text[i] == " " and text[i + 1].isalpha()]
    at = rng.randrange(len(words) - 8)
    return _cut("prose", text, words[at], words[at + rng.randrange(2, 7)])


def fill(llm: LLM, hole: Hole, preset: str, arm: str) -> Outcome:
    """One hole by one request; `arm` as the file's head says."""
    begun = time.perf_counter()
    cut = arm == "told" and hole.kind != "line"
    breaks = () if cut or hole.kind == "lines" else ("\n",)
    most = len(llm.tokenizer.encode(hole.middle)) if cut else MAX_TOKENS
    sampling = Sampling(max_tokens=MAX_TOKENS) if arm == "default" else Sampling(max_tokens=most, stop=breaks)
    events = list(llm.stream(hole.before, sampling, preset, suffix=hole.after if arm == "default" else ""))
    wall_s = time.perf_counter() - begun
    text = "".join(event.text for event in events if isinstance(event, Text))
    if cut:
        text = text[: len(hole.middle)]
    elif arm == "left" and hole.kind == "lines":
        text = "\n".join(text.split("\n")[:3])
    finish = events[-1]
    assert isinstance(finish, Finish)
    return Outcome(
        kind=hole.kind,
        text=text,
        exact=text == hole.middle,
        similarity=difflib.SequenceMatcher(None, text, hole.middle, autojunk=False).ratio(),
        parses=None if hole.kind == "prose" else _parses(hole, text),
        tokens=finish.usage.completion_tokens,
        passes=finish.usage.passes,
        wall_s=wall_s,
        joined=finish.reason == "stop",
    )


def _parses(hole: Hole, text: str) -> bool:
    """Whether the statement around the gap is still a statement: the gap's own lines, dedented."""
    before, after = hole.before.rpartition("\n")[2], hole.after.partition("\n")[0]
    lines = (before + text + after).strip("\n").splitlines()
    if not lines:
        return False
    indent = len(lines[0]) - len(lines[0].lstrip())
    block = "\n".join(line[indent:] if line[:indent].isspace() else line for line in lines)
    if block.rstrip().endswith(":"):
        last = block.rstrip().rpartition("\n")[2]
        block = f"{block.rstrip()}\n{' ' * (len(last) - len(last.lstrip()) + 4)}pass"
    if block.startswith(("elif", "else")):
        block = f"if x: pass\n{block}"
    if block.startswith("except"):
        block = f"try: pass\n{block}"
    try:
        ast.parse(block)
    except SyntaxError as error:
        return "outside" in str(error)
    return True


def summary(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """One row of the table: shares and means, the wall time's median."""
    code = [outcome.parses for outcome in outcomes if outcome.parses is not None]
    kinds = {kind: [o for o in outcomes if o.kind == kind] for kind in sorted({o.kind for o in outcomes})}
    return {
        "gaps": len(outcomes),
        "exact": _mean(o.exact for o in outcomes),
        "similarity": _mean(o.similarity for o in outcomes),
        "exact_by_kind": {kind: _mean(o.exact for o in some) for kind, some in kinds.items()},
        "similarity_by_kind": {kind: _mean(o.similarity for o in some) for kind, some in kinds.items()},
        "parses": _mean(code),
        "joined": _mean(o.joined for o in outcomes),
        "tokens": _mean(o.tokens for o in outcomes),
        "passes": _mean(o.passes for o in outcomes),
        "tokens_per_pass": round(
            sum(o.tokens for o in outcomes) / max(1, sum(o.passes for o in outcomes)), 3
        ),
        "wall_s_median": round(statistics.median(o.wall_s for o in outcomes), 3),
        "wall_s_spread": [round(q, 3) for q in statistics.quantiles((o.wall_s for o in outcomes), n=4)],
    }


def _mean(values: Iterable[float]) -> float:
    return round(statistics.fmean(values), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gaps", type=int, default=60)
    parser.add_argument("--arms", default="left,told,default")
    parser.add_argument("--preset", default="lossless")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", action="store_true", help="print every gap and what filled it")
    chosen = parser.parse_args()
    llm = LLM()
    list(llm.stream("warm", Sampling(max_tokens=4)))
    for arm in chosen.arms.split(","):
        outcomes = []
        for hole in holes(chosen.gaps, chosen.seed):
            outcome = fill(llm, hole, chosen.preset, arm)
            outcomes.append(outcome)
            if chosen.show:
                print([hole.before[-60:], hole.middle, hole.after[:40], outcome.text, outcome.passes])
        where = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "cores": os.cpu_count(), "torch": torch.__version__}
        row = {"arm": arm, "preset": chosen.preset, "seed": chosen.seed, **summary(outcomes), **where}
        if chosen.out:
            with chosen.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
