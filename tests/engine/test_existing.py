"""Text that an answer repeats: the same answer, in fewer passes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests import tiny
from vermilion.decoding.commit import copied
from vermilion.types import Decoding, Finish, Request, Sampling, Text

DECODING = Decoding("lossless", block_length=4, draft_nodes=32)


def answer(request: Request, **settings: object) -> tuple[str, Finish, tuple[int, ...]]:
    one = tiny.engine("causal-shift", tiny.model("causal-shift"), **settings)
    program = one.submit(request)
    events = []
    while one.has_work:
        events += [event for _, event in one.step()]
    assert isinstance(events[-1], Finish)
    text = "".join(event.text for event in events if isinstance(event, Text))
    return text, events[-1], tuple(program.tokens[len(request.prompt) :])


@pytest.mark.parametrize(
    "sampling", [Sampling(max_tokens=60), Sampling(max_tokens=60, temperature=0.7, seed=3)]
)
def test_a_text_that_is_repeated_takes_few_passes(sampling: Sampling) -> None:
    request = Request("x", (5, 9, 13, 7), replace(sampling, ignore_eos=True), DECODING)
    text, plain, tokens = answer(request)
    again, fast, _ = answer(replace(request, existing=tokens))
    assert again == text
    assert fast.usage.passes <= 7 < plain.usage.passes
    changed = (*tokens[:20], 3, 3, *tokens[24:])
    edited, edit, _ = answer(replace(request, existing=changed))
    assert edited == text
    assert edit.usage.passes < plain.usage.passes


def test_text_of_no_use_changes_nothing(tmp_path: object) -> None:
    request = Request("x", (5, 9, 13, 7), Sampling(max_tokens=30), DECODING)
    text, _, _ = answer(request)
    assert answer(replace(request, existing=(95,) * 40), max_rows=16, kv_tokens=256)[0] == text


def test_the_place_in_the_text_is_found_by_what_was_written_last() -> None:
    existing = [1, 2, 3, 4, 1, 2, 5, 6]

    def chain(answer: list[int], size: int = 3) -> list[int]:
        return list(copied(existing, answer, size))

    assert chain([1, 2, 3]) == [4, 1, 2]
    assert chain([9, 9, 9, 9, 1, 2]) == [5, 6]
    assert chain([9]) == []
    assert chain([4, 1, 2], size=1) == [5]
    assert chain([6]) == []
