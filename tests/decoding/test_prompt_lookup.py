"""Drafts from the text itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vermilion.decoding.prompt_lookup import NGRAM_LENGTH, PromptLookup


def scanned(tokens: list[int], count: int) -> tuple[int, ...]:
    for end in range(len(tokens) - 1, NGRAM_LENGTH - 1, -1):
        if tokens[end - NGRAM_LENGTH : end] == tokens[-NGRAM_LENGTH:]:
            return tuple(tokens[end : end + count])
    return ()


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=12), st.integers(0, 9))
def test_a_growing_text_is_followed_as_a_scan_of_it_would(pieces: list[list[int]], count: int) -> None:
    repeats, tokens = PromptLookup(), [0]
    for piece in pieces:
        tokens += piece
        assert repeats.follow(tokens, count) == scanned(tokens, count)


def test_the_latest_place_wins_and_the_end_itself_is_none() -> None:
    assert PromptLookup().follow([1, 2, 3, 7, 1, 2, 3, 8, 9, 1, 2, 3], 2) == (8, 9)
    assert PromptLookup().follow([1, 2, 3], 4) == ()
    assert PromptLookup().follow([5, 5, 5, 5], 4) == (5,)
