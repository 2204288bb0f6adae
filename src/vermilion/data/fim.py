"""Fill-in-the-middle rows (`gap_template.py`): a base has to learn little, to heed the suffix and to end.

Cut from a text before it becomes tokens, as an editor's cursor cuts it (`gap`, for
data that is built once), or from tokens while training reads them (`rearranged`, another gap every epoch).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from vermilion.data.corpus import Document
from vermilion.gap_template import before_middle, before_word
from vermilion.text import Tokenizer, line_end, split_lines

Marks = Sequence[int]
"""Four tokens: before the row, the suffix and the prefix, and behind the middle."""
_MIN_SUFFIX = 8
_CHARACTERS = 6
"""Read on either side, a token of the row; more than is kept."""
_MAX_LINES = 4
_OPEN_LINE = 0.5
"""Where the draw of a gap's kind stands for a whole line behind its indentation."""


@dataclass(frozen=True, slots=True)
class GapForm:
    """What rows with gaps look like."""

    marks: Marks
    length: int
    """Most tokens of a row."""
    open_lines: float = 0.0
    """Share of the gaps that are whole lines behind their indentation; the others lie anywhere."""


def row(prefix: Sequence[int], middle: Sequence[int], suffix: Sequence[int], marks: Marks) -> Document:
    """A gap and its middle; only the middle and its end are trained on."""
    given = before_middle(prefix, suffix, marks)
    return Document([*given, *middle, marks[3]], len(given))


def rearranged(
    ids: Sequence[int], marks: Marks, breaks: Collection[int], rng: np.random.Generator
) -> Document:
    """A row of all of `ids`.

    Half of the gaps begin and end where a line does, behind a token of `breaks`; the others begin and end
    anywhere. The middle has at least one token.
    """
    cuts = np.arange(len(ids) + 1)
    if rng.random() < 0.5:
        lines = [0, *(i + 1 for i, token in enumerate(ids) if token in breaks), len(ids)]
        cuts = np.unique(lines)
    first, last = sorted(int(cut) for cut in rng.choice(cuts, 2, replace=False))
    return row(ids[:first], ids[first:last], ids[last:], marks)


def gap(text: str, tokenizer: Tokenizer, form: GapForm, generator: random.Random) -> Document | None:
    """A row with a gap at a random place of `text`.

    None where the chosen place has no text, none behind it, or too much for half a row.
    """
    length = form.length
    start, end = _cut(text, form.open_lines, generator)
    after = text[end : end + _CHARACTERS * length]
    prefix, blank = before_word(tokenizer, text[max(0, start - _CHARACTERS * length) : start])
    ids = tokenizer.encode(blank + text[start:end])
    if not text[start:end].strip() or not after.strip() or len(ids) > length // 2:
        return None
    room = length - len(ids) - len(form.marks)
    suffix = tokenizer.encode(after)[: generator.randint(_MIN_SUFFIX, length // 3)]
    return row(prefix[max(0, len(prefix) - room + len(suffix)) :], ids, suffix, form.marks)


def _cut(text: str, open_lines: float, generator: random.Random) -> tuple[int, int]:
    """Where a gap begins and ends: three in four lie in one line, the others go over up to four.

    It begins where cursors stand: behind an indentation (`open_lines` of them, and a fifth of the others); at
    the end of a line, with the break before the next; at a line's start, and ends with its break; within a
    line, up to its end; and between two places of a line.
    """
    lines = split_lines(text)
    filled = [number for number, line in enumerate(lines) if line.strip()]
    if not filled:
        return 0, 0
    first = generator.choice(filled)
    begin = sum(map(len, lines[:first]))
    body = lines[first].removesuffix(line_end(lines[first]))
    indent = len(body) - len(body.lstrip())
    kind = _OPEN_LINE if generator.random() < open_lines else generator.random()
    if kind < 0.2:
        low, high = sorted(generator.sample(range(indent, len(body) + 1), 2))
        return begin + low, begin + high
    count = 1 if generator.random() < 0.75 else generator.randint(2, _MAX_LINES)
    taken = lines[first : first + count]
    stop = begin + sum(map(len, taken))
    if kind < 0.3:
        return begin, stop
    stop -= len(line_end(taken[-1]))
    if kind <= _OPEN_LINE:
        return begin + indent, stop
    if kind < 0.7:
        return begin + generator.randrange(indent, len(body)), stop
    return begin - (len(line_end(lines[first - 1])) if first else 0), stop
