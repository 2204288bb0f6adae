"""An answer that only repeats itself ends early, at the same token for every decoder, and says so."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from tests.engine import test_grammar as grammars
from tests.engine.test_matches_reference import BLOCK_DECODINGS, LOSSLESS, outcome, prompt
from vermilion.decoding import repetition
from vermilion.decoding.reference import Reference
from vermilion.decoding.repetition import RepetitionWatch
from vermilion.models.transformer import Transformer
from vermilion.types import Finish, Grammar, Request, Sampling

# One token that is always chosen, and a cycle: each token makes itself unlikely for a while.
LOOPS = [
    Sampling(max_tokens=80, logit_bias={7: 100.0}),
    Sampling(max_tokens=80, logit_bias={token: 100.0 for token in range(5, 12)}, frequency_penalty=2.0),
]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repetition, "MIN_TOKENS", 24)
    monkeypatch.setattr(repetition, "MIN_PERIODS", 3)


@given(
    st.lists(st.integers(0, 3), max_size=20),
    st.lists(st.integers(0, 2), min_size=1, max_size=5),
    st.integers(1, 30),
)
def test_a_run_is_found_when_it_is_long_enough(before: list[int], unit: list[int], times: int) -> None:
    """The oracle compares the whole text with itself, shifted by each period."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(repetition, "MIN_TOKENS", 16)
        patched.setattr(repetition, "MIN_PERIODS", 4)
        watch, tokens = RepetitionWatch(), list[int]()
        for token in [*before, *unit * times]:
            tokens.append(token)
            wanted = False
            for period in range(1, min(65, len(tokens))):
                agree = [now == before for now, before in zip(tokens[period:], tokens, strict=False)]
                run = next((i for i, same in enumerate(reversed(agree)) if not same), len(agree))
                wanted = wanted or (run > 0 and run + period >= max(16, 4 * period))
            assert watch.push(token) == wanted


def test_what_is_stopped_by_default_is_long() -> None:
    watch = RepetitionWatch()
    zeros = ["| "] + ["0", " | "] * 20 + ["\n"]
    table = [hash(piece) % 1000 for piece in zeros] * 15
    assert not any(watch.push(token) for token in table)
    assert [watch.push(5) for _ in range(512)].index(True) == 511


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("kind", tiny.TRAITS)
def test_the_engine_stops_where_the_reference_does(kind: str) -> None:
    model = tiny.model(kind)
    reference = Reference(model, tiny.TRAITS[kind])
    decodings = BLOCK_DECODINGS[:4] + (LOSSLESS if kind == "causal-shift" else [])
    requests = [
        Request(f"{i}-{j}", prompt(9 + i, i), sampling, decoding)
        for i, decoding in enumerate(decodings)
        for j, sampling in enumerate(LOOPS[: 2 if kind == "causal-shift" else 1])
    ]
    expected = [reference.generate(r.prompt, r.sampling, r.decoding) for r in requests]
    assert outcome(tiny.engine(kind, model, kv_tokens=4096), requests) == expected
    assert all(len(r.tokens) < 40 for q, r in zip(requests, expected, strict=True) if q.id.endswith("-0"))
    if kind == "causal-shift":
        exact = [result.tokens for request, result in zip(requests, expected, strict=True)
                 if request.decoding.decoder in ("ar", "lossless") and request.id.endswith("-0")]  # fmt: skip
        assert all(len(tokens) == 24 for tokens in exact)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("change", "stops"), [({}, True), ({"stop_repetition": False}, False), ({"ignore_eos": True}, False)]
)
def test_the_end_says_why_and_can_be_switched_off(change: dict[str, bool], stops: bool) -> None:
    sampling = replace(Sampling(max_tokens=60, logit_bias={7: 100.0}), **change)
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"))
    finish = tiny.run(engine, [Request("x", (5, 6), sampling)])["x"][-1]
    assert isinstance(finish, Finish)
    assert (finish.reason, finish.repetition) == ("length", stops)
    assert finish.usage.completion_tokens == (24 if stops else 60)


model = grammars.model


@pytest.mark.usefixtures("short")
def test_a_grammar_is_brought_to_its_end(model: Transformer) -> None:
    """The same text for every way of verifying, and JSON in spite of the string that would not end."""
    wanted = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    grammar = Grammar("json_schema", json.dumps(wanted))
    texts = set()
    for decoding in grammars.DECODINGS[:3]:
        one = grammars.request("x", grammar, decoding, max_tokens=300, logit_bias={ord("x"): 100.0})
        events = tiny.run(grammars.engine(model), [one])["x"]
        finish = grammars.finish(events)
        assert finish.repetition and finish.reason == "stop" and finish.usage.completion_tokens < 60
        assert set(json.loads(grammars.text(events))["a"]) == {"x"}
        texts.add(grammars.text(events))
    assert len(texts) == 1


@pytest.mark.usefixtures("short")
def test_text_that_a_grammar_forces_may_repeat_itself(model: Transformer) -> None:
    grammar = Grammar("json_schema", json.dumps({"const": "ha " * 60}))
    for decoding in grammars.DECODINGS[:2]:
        one = grammars.request("x", grammar, decoding, max_tokens=300)
        events = tiny.run(grammars.engine(model), [one])["x"]
        assert json.loads(grammars.text(events)) == "ha " * 60
        assert not grammars.finish(events).repetition
