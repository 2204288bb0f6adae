"""Where the first piece of an answer ends."""

from __future__ import annotations

import pytest

from tests.voice.aggregating import pieces
from vermilion.voice.clauses import first_clause_end

pytestmark = pytest.mark.voice


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        ("To make good tea, ", "To make good tea, "),
        ("The sky is blue because ", "The sky is blue"),
        ("Yes, ", ""),
        ("It costs three, or ", ""),
        ("It costs about 3,5", ""),
        ("We open because ", ""),
    ],
)
def test_a_clause_ends_at_a_comma_or_before_a_joining_word_behind_four_words(text: str, clause: str) -> None:
    assert text[: first_clause_end(text)] == clause


def test_only_the_first_piece_of_an_answer_is_a_clause() -> None:
    answer = "To make good tea, you boil water, and you wait. Then you pour, and you drink it."
    expected = ["To make good tea,", "you boil water, and you wait.", "Then you pour, and you drink it."]
    assert pieces(answer, answer) == [expected, expected]


def test_no_word_is_lost_or_said_twice() -> None:
    answer = "The sky is blue because light scatters. That is all - or nearly so; I think."
    assert " ".join(pieces(answer)[0]).split() == answer.split()
