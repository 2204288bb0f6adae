"""llama.cpp's notation of grammars, made into Lark's by the grammar library's own converter."""

from __future__ import annotations

import re

from vermilion.errors import BadRequest

MAX_CHARACTERS = 100_000
_FIRST_PRINTABLE = 0xA1
_ESCAPED = re.compile(r"(?<!\\)((?:\\\\)*)(?:\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8}))")


def lark_of(grammar: str, param: str) -> str:
    """Raises `BadRequest` for what is no grammar."""
    if len(grammar) > MAX_CHARACTERS:
        raise _refused(param, f"{len(grammar)} characters are too many; at most {MAX_CHARACTERS}")
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return str(gbnf_to_lark(_ESCAPED.sub(_letter, grammar)))
    except RecursionError:
        raise _refused(param, "its rules are nested too deep") from None
    except Exception as error:
        # The converter has no class of its own for most of a caller's mistakes.
        raise _refused(
            param, str(error).splitlines()[0][:200] if str(error) else "it is no grammar"
        ) from None


def _letter(found: re.Match[str]) -> str:
    """The letter itself: the converter knows no escape but those of two digits."""
    code = int(found[2] or found[3], 16)
    return found[1] + chr(code) if _FIRST_PRINTABLE <= code < 0x110000 else found[0]


def _refused(param: str, why: str) -> BadRequest:
    return BadRequest(
        f"{param}: this grammar cannot be used: {why}.", param.partition(".")[0], "invalid_value"
    )
