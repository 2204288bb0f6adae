"""Metrics of a text alone: repetition, and whether it is Python."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Sequence


def distinct(tokens: Sequence[int], size: int = 3) -> float | None:
    """Different runs of `size` tokens over all of them; 1 for a text that repeats none. None if too short."""
    runs = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return len(set(runs)) / len(runs) if runs else None


def repetition(tokens: Sequence[int], size: int = 8) -> float:
    """Share of tokens that end an n-gram of `size` that occurred before."""
    seen: set[tuple[int, ...]] = set()
    again = 0
    for end in range(size, len(tokens) + 1):
        run = tuple(tokens[end - size : end])
        again += run in seen
        seen.add(run)
    return again / max(1, len(tokens))


def parses(source: str) -> bool:
    """Whether it is Python, as far as a parser can tell."""
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def parses_so_far(source: str) -> bool:
    """`parses`, but a last statement that a limit of length may have cut off is left out."""
    lines = source.rstrip().split("\n")
    while lines:
        if parses("\n".join(lines)):
            return True
        cut = lines.pop()
        if (
            lines
            and len(cut) == len(cut.lstrip())
            and not cut.startswith((")", "]", "}", "else", "elif", "except"))
        ):
            return parses("\n".join(lines))
    return False


def similarity(given: str, wanted: str) -> float:
    """Edit similarity, 0 to 1."""
    return difflib.SequenceMatcher(None, given, wanted, autojunk=False).ratio()
