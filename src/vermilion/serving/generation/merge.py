"""A file and a snippet with `... existing code ...` marks, put together where that needs no judgement."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vermilion.text import line_end, split_lines

_MARK = re.compile(
    r"^\s*(?://|#|--|;|%|/\*|<!--|\{/\*)?\s*(?:\.\.\.|\u2026)\s*(?:existing|rest of|unchanged)\b.*$", re.I
)


def merged(original: str, snippet: str) -> str | None:
    """The file with the snippet's hunks in it, all other lines byte for byte; None where it is not certain.

    Marks split the snippet into hunks. A hunk is certain if its first and its last line each occur exactly
    once in what of the file is left; it takes the place of everything from the one to the other. A snippet
    without marks is one hunk.
    """
    lines = split_lines(original)
    file_end = line_end(lines[0]) if lines else ""
    done: list[str] = []
    hunks = _hunks([line.removesuffix(line_end(line)) for line in split_lines(snippet)])
    for hunk in hunks:
        first, last = _places(lines, hunk[0]), _places(lines, hunk[-1])
        if len(first) != 1 or len(last) != 1 or last[0] < first[0]:
            return None
        start, end = first[0], last[0] + 1
        ending = line_end(lines[end - 1])
        newline = ending or file_end or "\n"
        done += lines[:start]
        done += [line + newline for line in hunk[:-1]]
        done.append(hunk[-1] + ending)
        lines = lines[end:]
    return "".join(done + lines) if hunks else None


def _hunks(lines: Sequence[str]) -> list[list[str]]:
    hunks: list[list[str]] = [[]]
    for line in lines:
        if _MARK.match(line):
            hunks.append([])
        else:
            hunks[-1].append(line)
    trimmed = []
    for hunk in hunks:
        while hunk and not hunk[0].strip():
            hunk.pop(0)
        while hunk and not hunk[-1].strip():
            hunk.pop()
        trimmed += [hunk] if hunk else []
    return trimmed


def _places(lines: Sequence[str], wanted: str) -> list[int]:
    return [number for number, line in enumerate(lines) if line.rstrip() == wanted.rstrip()]
