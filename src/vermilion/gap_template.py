"""How a gap is put before an adapter that fills it: the suffix, then the prefix, then the middle behind it.

This is the order SPM of arXiv 2207.14255: MARK MARK suffix MARK prefix middle END. The middle goes on from
the prefix as any text does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from vermilion.errors import ModelFileError
from vermilion.text import Tokenizer, read_json

FIM_FOLDER = "fim"
"""Below a denoiser's folder: an adapter in PEFT's layout and FIM_FILE."""
FIM_FILE = "fim.json"

LINE_TOKENS = 64
"""Before a cursor, in which its line's indentation is looked for."""


@dataclass(frozen=True, slots=True)
class GapTemplate:
    """The tokens between the parts, and how much of a suffix is read."""

    marks: tuple[int, int, int, int]
    """Ids before the row, the suffix and the prefix, and behind the middle."""
    max_suffix: int
    """Tokens; of a longer suffix the first are read."""
    end_bias: float = 0.0
    """Added to the end's logit. Nothing marks the gap's start, so that an end of a line may be the prefix's
    or the middle's, and an adapter hesitates to end there."""

    @classmethod
    def read(cls, folder: Path, vocab_size: int) -> Self:
        """From the folder of an adapter. Raises ModelFileError for a missing file and for what cannot be."""
        path = folder / FIM_FILE
        if not path.is_file():
            raise ModelFileError(f"{path} is missing.")
        given = read_json(path)
        marks, most = given.get("marks"), given.get("max_suffix")
        listed = marks if isinstance(marks, list) else []
        ids = [mark for mark in listed if type(mark) is int and 0 <= mark < vocab_size]
        if not len(ids) == len(set(ids)) == len(listed) == 4:
            raise ModelFileError(f"{path}: marks {marks!r}; allowed: four different ids below {vocab_size}.")
        if type(most) is not int or most < 1:
            raise ModelFileError(f"{path}: max_suffix {most!r}; allowed: 1 token or more.")
        bias = given.get("end_bias", 0.0)
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise ModelFileError(f"{path}: end_bias {bias!r}; allowed: -100 to 100.")
        return cls((ids[0], ids[1], ids[2], ids[3]), most, float(bias))

    def write(self, folder: Path) -> None:
        """Beside an adapter; replaces the file that may be there."""
        (folder / FIM_FILE).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    def prompt(self, prefix: Sequence[int], suffix: Sequence[int], most: int) -> tuple[int, ...]:
        """What the middle goes on from, in at most `most` tokens: the first ones of the prefix go."""
        row = before_middle((), suffix[: self.max_suffix], self.marks)
        return (*row, *prefix[max(0, len(prefix) - most + len(row)) :])


def before_middle(prefix: Sequence[int], suffix: Sequence[int], marks: Sequence[int]) -> list[int]:
    """All of a row that is given."""
    return [marks[0], marks[1], *suffix, marks[2], *prefix]


def before_word(tokenizer: Tokenizer, text: str) -> tuple[list[int], str]:
    """(ids, blank): `text` in the tokens that it has where a word follows, and its last blank where that is
    part of the word's token.

    An indentation that ends a text is one token; before a word it is not, and models know it only so.
    """
    if not text[-1:].isspace():
        return tokenizer.encode(text), ""
    ids = tokenizer.encode(f"{text}x")[:-1]
    return ids, text[len(tokenizer.decode(ids)) :]


def open_prompt(tokenizer: Tokenizer, prompt: Sequence[int]) -> tuple[tuple[int, ...], str]:
    """(ids, blank): the prompt before a gap on an open line, its last blanks tokenised by `before_word`."""
    kept = len(prompt)
    while kept > max(0, len(prompt) - LINE_TOKENS) and tokenizer.decode(prompt[kept - 1 : kept]).isspace():
        kept -= 1
    ids, blank = before_word(tokenizer, tokenizer.decode(prompt[kept:]))
    return (*prompt[:kept], *ids), blank


def is_open_line(prefix: str, suffix: str) -> bool:
    """Whether the cursor stands on a line of its own, behind its indentation at most, with text below.

    The adapter fills no other gaps better than the base and its bridges do (figures in docs/MODEL.md).
    """
    line = prefix[max(prefix.rfind("\n"), prefix.rfind("\r")) + 1 :]
    below = suffix.lstrip(" \t").startswith(("\n", "\r"))
    return not line.strip() and below and bool(suffix.strip())
