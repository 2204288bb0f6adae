"""Answers that are given: their log-probabilities are the base's, in any company, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import peft, tiny
from tests.engine.test_matches_reference import prompt
from vermilion.engine.loading import read_adapter
from vermilion.errors import BadRequest
from vermilion.types import Decoding, Event, Finish, Request, Sampling, Text

KIND = "causal-shift"


def told(events: list[Event]) -> tuple[list[int], list[float]]:
    tokens = [token for event in events if isinstance(event, Text) for token in event.tokens]
    return [token.id for token in tokens], [token.logprob for token in tokens]


@pytest.mark.parametrize("settings", [{}, {"prefill_chunk": 8, "max_rows": 24}], ids=str)
def test_every_token_is_read_behind_all_before_it(settings: dict[str, int], tmp_path: Path) -> None:
    one = tiny.engine(KIND, tiny.model(KIND), **settings)
    one.adapters.add("other", read_adapter(one, peft.write(tmp_path, tiny.ARCHITECTURE, 3, seed=8)))
    answers = [(*prompt(3 + 4 * i, 60 + i), tiny.EOS, 7) for i in range(3)]
    texts = [prompt(20, 1), prompt(20, 1), prompt(1, 2)]
    expected = [
        [reading.target_logprobs[0] for reading in one.score(text, answer)]
        for text, answer in zip(texts, answers, strict=True)
    ]
    sampling = Sampling(max_tokens=40, logprobs=0)
    given = [
        Request(f"{i}", text, sampling, Decoding("lossless"), given=answer)
        for i, (text, answer) in enumerate(zip(texts, answers, strict=True))
    ]
    company = [
        Request("plain", prompt(12, 0), Sampling(max_tokens=9)),
        Request("other", texts[0], sampling, given=answers[0], adapter="other"),
    ]
    for _ in range(2):  # the second time the prompts are in the prefix cache
        events = tiny.run(one, [*given, *company])
        for request, answer, logprobs in zip(given, answers, expected, strict=True):
            ids, found = told(events[request.id])
            assert ids == list(answer) and found == pytest.approx(logprobs, abs=1e-9)
            finish = events[request.id][-1]
            assert isinstance(finish, Finish) and (finish.reason, finish.usage.passes) == ("length", 0)
        assert told(events["other"])[1] != pytest.approx(expected[0], abs=1e-3)


def test_a_model_without_a_base_reads_none() -> None:
    one = tiny.engine("full", tiny.model("full"))
    with pytest.raises(BadRequest, match="no base"):
        one.check(Request("0", prompt(5, 0), Sampling(max_tokens=4), Decoding("threshold"), given=(3, 4)))
