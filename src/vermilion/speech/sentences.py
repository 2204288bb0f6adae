"""A text cut into what a synthesiser speaks at once."""

from __future__ import annotations

import re
from collections.abc import Iterator

_SENTENCE = re.compile(r"[^.!?]*[.!?]+[\"')\]]*|[^.!?]+")


def sentences(text: str) -> Iterator[str]:
    """Those with a letter or digit, without the blanks around them."""
    for sentence in _SENTENCE.findall(text):
        if any(letter.isalnum() for letter in sentence):
            yield sentence.strip()
