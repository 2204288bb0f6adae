"""Fill-in-the-middle rows: prefix and suffix first, then the middle (arXiv 2207.14255).

Cut from a text before it becomes tokens, as an editor's cursor cuts it (`gap`, for data that is built once),
or from tokens while training reads them (`rearranged`, another gap every epoch).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import numpy as np

from vermilion.data.corpus import Document
from vermilion.text import Tokenizer, line_end, split_lines

Marks = Sequence[int]
"""Four tokens: PRE, SUF, MID, END."""
_PREFIX_TOKENS = 96
_SUFFIX_TOKENS = 64
_CHARACTERS = 600
"""Read on either side; more tokens than are kept."""
_MAX_LINES = 4


def row(prefix: Sequence[int], middle: Sequence[int], suffix: Sequence[int], marks: Marks) -> Document:
    """PRE prefix SUF suffix MID middle END; only the middle and its END are trained on."""
    pre, suf, mid, end = marks
    given = [pre, *prefix, suf, *suffix, mid]
    return Document([*given, *middle, end], len(given))


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


def gap(text: str, tokenizer: Tokenizer, marks: Marks, generator: random.Random) -> Document | None:
    """A row with a gap at a random place of `text`.

    Half of the gaps are whole lines, half lie inside one. None where the chosen place has no text.
    """
    lines = split_lines(text)
    first = generator.randrange(len(lines))
    start = sum(map(len, lines[:first]))
    if generator.random() < 0.5:
        end = start + sum(map(len, lines[first : first + generator.randint(1, _MAX_LINES)]))
    else:
        length = len(lines[first].removesuffix(line_end(lines[first])))
        if length < 2:
            return None
        low, high = sorted(generator.sample(range(length + 1), 2))
        start, end = start + low, start + high
    middle = text[start:end]
    if not middle.strip():
        return None
    before = tokenizer.encode(text[max(0, start - _CHARACTERS) : start])[-_PREFIX_TOKENS:]
    after = tokenizer.encode(text[end : end + _CHARACTERS])[:_SUFFIX_TOKENS]
    return row(before, tokenizer.encode(middle), after, marks)
