"""Lines cut out of HumanEval's solutions and of held-out projects, with and without the right side."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from vermilion.evaluation.code_tasks import CONTEXT_CHARACTERS, MAX_PROGRAM, Gap, gaps
from vermilion.evaluation.reference_texts import problems, programs
from vermilion.evaluation.sampler import Ask, Reply, Sampler
from vermilion.evaluation.task import EvalTask, Grade, Setting, Silent, asked
from vermilion.evaluation.text_quality import similarity

_TOKENS = 48
_RESAMPLED = 10_000
_BOTH, _PLAIN, _LEFT = "both sides", "both sides, no adapter", "left alone"


def line_gaps(sources: Sequence[tuple[str, int]], count: int, seed: int) -> list[Gap]:
    """Up to `count` different gaps of a whole line each, with no more around them than an editor sends;
    `sources`: texts, and the character from which on lines may be cut out."""
    rng, found = random.Random(seed), dict[tuple[str, str], Gap]()
    left, right = CONTEXT_CHARACTERS
    for _ in range(40 * count):
        if len(found) == count or not sources:
            break
        text, first = rng.choice(sources)
        gap = gaps(text, first, "line", rng)
        if gap is not None and gap.after.strip():
            gap = Gap("line", gap.before[-left:], gap.middle, gap.after[:right], whole=False)
            found[gap.before, gap.middle] = gap
    return list(found.values())


def difference(ours: Sequence[bool], theirs: Sequence[bool]) -> dict[str, float]:
    """Of two shares over the same gaps, with the 95 % interval of the paired bootstrap (seed 0)."""
    each = np.asarray(ours, float) - np.asarray(theirs, float)
    drawn = np.random.default_rng(0).integers(len(each), size=(_RESAMPLED, len(each)))
    low, high = np.quantile(each[drawn].mean(1), (0.025, 0.975))
    return {"mean": round(float(each.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _fim(sampler: Sampler, setting: Setting) -> dict[str, Any]:
    """`limit` gaps of each source. `exact`: the answer as it is; `exact_line`: cut where its first line ends,
    which an editor that wants one line does, and without which a continuation knows no end."""
    solved = [(one["prompt"] + one["canonical_solution"], len(one["prompt"])) for one in problems()]
    sources = {"humaneval": solved}
    for path in setting.held_out:
        texts = (text for text in programs(sampler.llm, path) if 200 < len(text) < MAX_PROGRAM)
        sources[path.name] = [(text, min(200, len(text) // 4)) for text in texts]
    cut = {name: line_gaps(texts, setting.limit, setting.seed) for name, texts in sources.items()}
    ways = (_BOTH, _PLAIN, _LEFT) if sampler.llm.engine.gap_template else (_BOTH, _LEFT)
    setting.watch.begin(len(ways) * sum(map(len, cut.values())))
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)

    def grade(sampler: Sampler, ask: Ask, reply: Reply) -> Grade:
        middle, line = ask.facts["gap"].middle, _first_line(reply.text)
        right[ask.facts["source"], ask.facts["way"]].append(line == middle)
        setting.watch.step()
        exact = reply.text == middle if ask.suffix else line == middle
        return {"exact": exact, "exact_line": line == middle, "similarity": similarity(reply.text, middle)}

    figures: dict[str, Any] = {"by_group": {}}
    for way in ways:
        with _without_adapter(sampler) if way == _PLAIN else nullcontext():
            for name, found in cut.items():
                asks = [_ask(gap, name, way) for gap in found]
                figures["by_group"][f"{name} line, {way}"] = asked(sampler, asks, grade, Silent())
    figures["differences"] = {
        f"{name}: {_BOTH} over {way}": difference(right[name, _BOTH], right[name, way])
        for name, found in cut.items()
        for way in ways[1:]
        if found
    }
    return figures


def _ask(gap: Gap, source: str, way: str) -> Ask:
    facts: Mapping[str, Any] = {"gap": gap, "source": source, "way": way}
    return Ask(gap.before, _TOKENS, suffix="" if way == _LEFT else gap.after, facts=facts)


def _first_line(text: str) -> str:
    """Up to the end of the first line; one that starts with a break begins the line behind it."""
    end = text.find("\n", 1)
    return text if end < 0 else text[:end]


@contextmanager
def _without_adapter(sampler: Sampler) -> Iterator[None]:
    engine = sampler.llm.engine
    template, engine.gap_template = engine.gap_template, None
    try:
        yield
    finally:
        engine.gap_template = template


TASKS = (
    EvalTask("fim", "one line cut out of solutions and held-out projects, against the left alone", _fim),
)
