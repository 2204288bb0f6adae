"""Lines cut out of HumanEval's solutions and of held-out projects behind their indentation, where an editor's
cursor stands, with and without the right side."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from vermilion.evaluation.code_tasks import CONTEXT_CHARACTERS, MAX_PROGRAM, Gap, gaps
from vermilion.evaluation.reference_texts import problems, programs
from vermilion.evaluation.sampler import Ask, Reply, Sampler
from vermilion.evaluation.task import EvalTask, Grade, Setting, Silent, asked
from vermilion.evaluation.text_quality import similarity
from vermilion.gap_template import before_word

_TOKENS = 40
_RESAMPLED = 10_000
_BOTH, _PLAIN = "both sides", "both sides, no adapter"
_LEFT, _ABOVE = "left alone", "left alone, from the line above"
_OPEN = "left alone, tokens of an open line"
_BEST = "both sides, best of 8"


def line_gaps(sources: Sequence[tuple[str, int]], count: int, seed: int) -> list[Gap]:
    """Up to `count` different gaps, each of a line without its break and indentation, with no more around
    them than an editor sends; `sources`: texts, and the character from which on lines may be cut out."""
    rng, found = random.Random(seed), dict[tuple[str, str], Gap]()
    left, right = CONTEXT_CHARACTERS
    for _ in range(40 * count):
        if len(found) == count or not sources:
            break
        text, first = rng.choice(sources)
        gap = gaps(text, first, "line", rng)
        if gap is not None and gap.after.strip():
            indent = gap.middle[: len(gap.middle) - len(gap.middle.lstrip())]
            before, middle = gap.before[-left:] + indent, gap.middle.lstrip()
            found[before, middle] = Gap("line", before, middle, gap.after[:right], whole=False)
    return list(found.values())


def difference(ours: Sequence[bool], theirs: Sequence[bool]) -> dict[str, float]:
    """Of two shares over the same gaps, with the 95 % interval of the paired bootstrap (seed 0)."""
    each = np.asarray(ours, float) - np.asarray(theirs, float)
    drawn = np.random.default_rng(0).integers(len(each), size=(_RESAMPLED, len(each)))
    low, high = np.quantile(each[drawn].mean(1), (0.025, 0.975))
    return {"mean": round(float(each.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _fim(sampler: Sampler, setting: Setting) -> dict[str, Any]:
    """`limit` gaps of each source. What has no right side is cut where the line ends: it knows no other end.
    From the line above, indentation and all, a continuation begins as its tokens do in any text; behind the
    indentation it does so in the tokens of an open line, as the adapter's does."""
    solved = [(one["prompt"] + one["canonical_solution"], len(one["prompt"])) for one in problems()]
    sources = {"humaneval": solved}
    for path in setting.held_out:
        texts = (text for text in programs(sampler.llm, path) if 200 < len(text) < MAX_PROGRAM)
        sources[path.name] = [(text, min(200, len(text) // 4)) for text in texts]
    cut = {name: line_gaps(texts, setting.limit, setting.seed) for name, texts in sources.items()}
    plain = (_PLAIN,) if sampler.llm.engine.gap_template else ()
    ways = (_BOTH, _BEST, *plain, _LEFT, _ABOVE, _OPEN)
    setting.watch.begin(len(ways) * sum(map(len, cut.values())))
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)

    def grade(sampler: Sampler, ask: Ask, reply: Reply) -> Grade:
        gap: Gap = ask.facts["gap"]
        text = reply.text
        if ask.facts["way"] == _ABOVE:
            # Its blanks are the gap's where they are the right ones.
            text = _first_line(text).removeprefix(_blanks(gap))
        elif ask.facts["way"] == _OPEN:
            text = _first_line(text).removeprefix(ask.facts["blank"])
        elif not ask.suffix:
            text = _first_line(text)
        right[ask.facts["source"], ask.facts["way"]].append(text == gap.middle)
        setting.watch.step()
        return {"exact": text == gap.middle, "similarity": similarity(text, gap.middle)}

    figures: dict[str, Any] = {"by_group": {}}
    for way in ways:
        with _without_adapter(sampler) if way == _PLAIN else nullcontext():
            for name, found in cut.items():
                asks = [_ask(sampler, gap, name, way) for gap in found]
                asker = replace(sampler, best_of=8, temperature=0.7) if way == _BEST else sampler
                figures["by_group"][f"{name} line, {way}"] = asked(asker, asks, grade, Silent())
    figures["differences"] = {
        f"{name}: {ours} over {way}": difference(right[name, ours], right[name, way])
        for name, found in cut.items()
        for ours in (_BOTH, _BEST)
        for way in ways
        if found and way not in (ours, _BEST)
    }
    return figures


def _ask(sampler: Sampler, gap: Gap, source: str, way: str) -> Ask:
    facts: Mapping[str, Any] = {"gap": gap, "source": source, "way": way}
    if way == _OPEN:
        ids, blank = before_word(sampler.llm.tokenizer, gap.before)
        return Ask(tuple(ids), _TOKENS, "", ("\n",), facts={**facts, "blank": blank})
    if way == _ABOVE:
        return Ask(gap.before.removesuffix(_blanks(gap)), _TOKENS, facts=facts)
    # A line that begins here ends at its break, without which the continuation goes on for nothing.
    return (
        Ask(gap.before, _TOKENS, "", ("\n",), facts=facts)
        if way == _LEFT
        else Ask(gap.before, _TOKENS, gap.after, facts=facts)
    )


def _blanks(gap: Gap) -> str:
    """The break and the indentation before the gap."""
    return gap.before[gap.before.rfind("\n") :]


def _first_line(text: str) -> str:
    """Up to the end of the first line that is not blank."""
    start = len(text) - len(text.lstrip())
    end = text.find("\n", start)
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
