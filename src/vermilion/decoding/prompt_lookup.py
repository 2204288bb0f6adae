"""Free drafts: what followed a text's last tokens where they stood before (prompt lookup decoding).

Answers quote their prompts, code repeats its names, and small models repeat themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

NGRAM_LENGTH = 3
"""Tokens that must agree."""


class PromptLookup:
    """The last place of every run of `NGRAM_LENGTH` tokens of a growing text."""

    def __init__(self) -> None:
        self._behind: dict[tuple[int, ...], int] = {}
        self._known = NGRAM_LENGTH

    def follow(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        """Up to `count` tokens that stood behind the latest earlier place of the last `NGRAM_LENGTH` tokens.

        Every call's `tokens` must begin with the last call's.
        """
        for end in range(self._known, len(tokens)):
            self._behind[tuple(tokens[end - NGRAM_LENGTH : end])] = end
        self._known = max(self._known, len(tokens))
        place = self._behind.get(tuple(tokens[-NGRAM_LENGTH:]))
        return () if place is None else tuple(tokens[place : place + count])
