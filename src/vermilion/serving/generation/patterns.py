"""ECMA's regular expressions, as JSON schemas write them, in the dialect that grammars are made from.

Where the dialects differ in what a class holds (`\\d`, `\\w`, `\\s` and the dot), the narrower reading is
taken: what it matches, every validator's does.
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_CHARACTERS = 4000
_OUTSIDE = {
    "d": "[0-9]",
    "w": "[A-Za-z0-9_]",
    "s": r"[ \t\n\r\f\v]",
    "S": r"[^\s\x1c-\x1f\u{feff}]",
}
_INSIDE = {"d": "0-9", "w": "A-Za-z0-9_", "s": r" \t\n\r\f\v"}
"""For classes that are not negated; in others the wider Unicode sets exclude more."""
_DOT = r"[^\n\r\u{2028}\u{2029}]"
_REFUSED_ESCAPES = re.compile(r"[1-9]|[bBkAZzGRXK<>]")
"""Word boundaries, references to groups, and what only other dialects know."""
_GROUPS = re.compile(r"\?(?::|P?<[A-Za-z_]\w*>)")
_CODE = re.compile(r"u\{[0-9A-Fa-f]{1,6}\}|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|[pP]\{[\w=]+\}")
_PLAIN = "fnrtvDWSdws0"


@lru_cache(maxsize=1024)
def portable(pattern: str) -> str | None:
    """`pattern` in the grammars' dialect; None where no grammar can hold it.

    Without look-around, word boundaries, references and anchors in the middle.
    """
    if len(pattern) > MAX_CHARACTERS:
        return None
    try:
        written = "".join(_pieces(pattern))
    except _Unheld:
        return None
    return written if compiles({"type": "string", "pattern": written}) else None


class _Unheld(Exception):
    """The pattern says what no grammar can hold."""


def _pieces(pattern: str) -> list[str]:
    pieces: list[str] = []
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        if letter == "\\":
            piece, at = _escape(pattern, at + 1, _OUTSIDE)
        elif letter == "[":
            piece, at = _class(pattern, at + 1)
        elif letter == "(" and pattern.startswith("?", at + 1) and not _GROUPS.match(pattern, at + 1):
            raise _Unheld
        else:
            piece, at = _DOT if letter == "." else letter, at + 1
        pieces.append(piece)
    return pieces


def _escape(pattern: str, at: int, sets: dict[str, str]) -> tuple[str, int]:
    """What stands behind a backslash at `at - 1`, and where the text goes on."""
    code = _CODE.match(pattern, at)
    if code is not None:
        return f"\\{code[0]}", code.end()
    letter = pattern[at : at + 1]
    if letter in sets:
        return sets[letter], at + 1
    if not letter or _REFUSED_ESCAPES.match(letter) or (letter.isalnum() and letter not in _PLAIN):
        if letter == "c" and pattern[at + 1 : at + 2].isalpha():
            return f"\\x{ord(pattern[at + 1]) % 32:02x}", at + 2
        raise _Unheld
    if letter == "0":
        return r"\x00", at + 1
    return f"\\{letter}" if letter.isascii() else letter, at + 1


def _class(pattern: str, at: int) -> tuple[str, int]:
    """A class whose bracket opens at `at - 1`; `[`, `&`, `-` and `~` are letters there, not operators."""
    negated = pattern.startswith("^", at)
    pieces = ["[^" if negated else "["]
    at += negated
    while at < len(pattern) and pattern[at] != "]":
        if pattern[at] == "\\":
            if pattern.startswith("b", at + 1):
                piece, at = r"\x08", at + 2
            else:
                piece, at = _escape(pattern, at + 1, {} if negated else _INSIDE)
        else:
            operator = pattern[at] in "[&~" or pattern.startswith("--", at)
            piece, at = f"\\{pattern[at]}" if operator else pattern[at], at + 1
        pieces.append(piece)
    if at >= len(pattern) or len(pieces) == 1:
        raise _Unheld
    return f"{''.join(pieces)}]", at + 1


def compiles(schema: dict[str, object]) -> bool:
    """Whether the grammar library takes a small schema, which depends on more than its letters."""
    from llguidance import LLMatcher

    return not LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema))
