"""Fill-in-the-middle rows: prefix and suffix are given, the middle is what is learnt (arXiv 2207.14255)."""

from __future__ import annotations

import random

from vermilion.text import Tokenizer
from vermilion.training.corpus import Document

_PREFIX_TOKENS = 96
_SUFFIX_TOKENS = 64
_CHARACTERS = 600
"""Read on either side; more tokens than are kept."""
_MOST_LINES = 4


def gap(
    text: str, tokenizer: Tokenizer, tokens: tuple[int, ...], generator: random.Random
) -> Document | None:
    """A row `PRE prefix SUF suffix MID middle EOM` cut from `text`; `tokens` are those four ids.

    Half of the gaps are whole lines, half lie inside one. None where the chosen place has no text.
    """
    lines = text.splitlines(keepends=True)
    first = generator.randrange(len(lines))
    start = sum(map(len, lines[:first]))
    if generator.random() < 0.5:
        end = start + sum(map(len, lines[first : first + generator.randint(1, _MOST_LINES)]))
    else:
        length = len(lines[first].rstrip("\n"))
        if length < 2:
            return None
        low, high = sorted(generator.sample(range(length + 1), 2))
        start, end = start + low, start + high
    middle = text[start:end]
    if not middle.strip():
        return None
    pre, suf, mid, eom = tokens
    before = tokenizer.encode(text[max(0, start - _CHARACTERS) : start])[-_PREFIX_TOKENS:]
    after = tokenizer.encode(text[end : end + _CHARACTERS])[:_SUFFIX_TOKENS]
    given = [pre, *before, suf, *after, mid]
    return Document([*given, *tokenizer.encode(middle), eom], len(given))
