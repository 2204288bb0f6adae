"""A file and a snippet with `... existing code ...` marks, put together where that needs no judgement."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

from vermilion.text import line_end, split_lines

_MARK = re.compile(
    r"(?://|#|--|;|%|/\*|<!--|\{/\*)?\s*(?:\.\.\.|\u2026)\s*(?:existing|rest of|unchanged)\b", re.IGNORECASE
)
"""At the start of a line without the blanks around it, so that no run of blanks can be read in two ways."""


def merged(original: str, snippet: str) -> str | None:
    """The file with the snippet's hunks in it, all other lines byte for byte; None where it is not certain.

    Marks split the snippet into hunks. A hunk is certain if its first and its last line each occur exactly
    once in what of the file is left; it takes the place of everything from the one to the other. A snippet
    without marks is one hunk. Linear in both texts, whatever the number of hunks.
    """
    lines = split_lines(original)
    file_end = line_end(lines[0]) if lines else ""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for number, line in enumerate(lines):
        places[line.rstrip()].append(number)
    done: list[str] = []
    hunks, begin = _hunks([line.removesuffix(line_end(line)) for line in split_lines(snippet)]), 0
    for hunk in hunks:
        first, last = _only(places, hunk[0], begin), _only(places, hunk[-1], begin)
        if first is None or last is None or last < first:
            return None
        ending = line_end(lines[last])
        newline = ending or file_end or "\n"
        done += lines[begin:first]
        done += [line + newline for line in hunk[:-1]]
        done.append(hunk[-1] + ending)
        begin = last + 1
    return "".join(done + lines[begin:]) if hunks else None


def _hunks(lines: Sequence[str]) -> list[list[str]]:
    hunks: list[list[str]] = [[]]
    for line in lines:
        if _MARK.match(line.strip()):
            hunks.append([])
        else:
            hunks[-1].append(line)
    return [hunk for hunk in map(_trimmed, hunks) if hunk]


def _trimmed(hunk: list[str]) -> list[str]:
    """Without the blank lines around it."""
    full = [number for number, line in enumerate(hunk) if line.strip()]
    return hunk[full[0] : full[-1] + 1] if full else []


def _only(places: defaultdict[str, list[int]], wanted: str, begin: int) -> int | None:
    """The one line from `begin` on that reads so; None where there is none or several."""
    found = places.get(wanted.rstrip(), [])
    at = bisect_left(found, begin)
    return found[at] if len(found) - at == 1 else None
