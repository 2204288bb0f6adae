"""Decoders that find a text's length: the engine gives what the reference gives, within the limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests import tiny
from tests.engine.test_canvas_programs import tiny_engine
from tests.engine.test_matches_reference import outcome, prompt
from vermilion.decoding.reference import Result, grow
from vermilion.errors import BadParameter
from vermilion.models.families import Traits
from vermilion.types import Decoding, Request, Sampling, Seeds

EXPAND = 91
TRAITS = Traits("full", True, tiny.MASK, (tiny.EOS,), expand_token_id=EXPAND)
PLAIN = Traits("full", False, tiny.MASK, (tiny.EOS,))
# A random model seldom says these by itself.
BIAS = {EXPAND: 5.0, tiny.EOS: 3.0}
SAMPLINGS = [
    Sampling(max_tokens=30, logit_bias=BIAS),
    Sampling(max_tokens=17, temperature=0.9, top_p=0.9, top_k=40, seed=7, logit_bias=BIAS),
    Sampling(max_tokens=23, repetition_penalty=1.3, presence_penalty=0.5, logit_bias=BIAS),
    Sampling(max_tokens=12, min_tokens=12, logit_bias={EXPAND: 50.0}),
    Sampling(max_tokens=40, ignore_eos=True),
]
DREAMON = Decoding("dreamon", first_length=4)
DAEDAL = Decoding(
    "daedal", threshold=0.5, min_threshold=0.2, block_length=8, first_length=6, growth=4,
    end_confidence=0.2, last_growth=0.4, end_window=4,
)  # fmt: skip
CASES = [
    (TRAITS, DREAMON, True),
    (TRAITS, replace(DREAMON, first_length=12, max_steps=5), True),
    (TRAITS, DREAMON, False),
    (TRAITS, DAEDAL, False),
    (PLAIN, DAEDAL, False),
    (PLAIN, replace(DAEDAL, max_steps=6), False),
    (PLAIN, replace(DAEDAL, first_length=64), False),
]


def requests(decoding: Decoding, gap: bool) -> list[Request]:
    return [
        Request(f"{i}", prompt(5 + 9 * i, i), one, decoding, prompt(1 + 8 * i, 50 + i) if gap else ())
        for i, one in enumerate(SAMPLINGS)
    ]


@pytest.mark.parametrize(("traits", "decoding", "gap"), CASES, ids=str)
def test_alone_and_in_any_company(traits: Traits, decoding: Decoding, gap: bool) -> None:
    model = tiny.model("full")
    wanted = requests(decoding, gap)
    expected = [grow(model, traits, request) for request in wanted]
    assert [outcome(tiny_engine(traits, model), [request])[0] for request in wanted] == expected
    assert outcome(tiny_engine(traits, model, max_rows=48), wanted) == expected
    for request, result in zip(wanted, expected, strict=True):
        assert len(result.tokens) <= request.sampling.max_tokens
        assert not {tiny.MASK, traits.expand_token_id} & {*result.tokens}
    assert len({len(result.tokens) for result in expected}) > 2


def test_short_memory_changes_nothing() -> None:
    model = tiny.model("full")
    wanted = [
        Request(f"{i}", prompt(20 + i % 9, i), Sampling(max_tokens=40, logit_bias=BIAS), decoding)
        for i, decoding in enumerate((DREAMON, DAEDAL) * 4)
    ]
    expected = [grow(model, TRAITS, request) for request in wanted]
    engine = tiny_engine(TRAITS, model, kv_tokens=216)
    assert outcome(engine, wanted) == expected
    assert engine.scheduler.preemptions > 0


def test_a_canvas_that_always_expands_ends_at_its_limit() -> None:
    model = tiny.model("full")
    always = Sampling(max_tokens=9, min_tokens=9, logit_bias={EXPAND: 100.0})
    [result] = outcome(tiny_engine(TRAITS, model), [Request("x", prompt(5, 1), always, DREAMON, (7, 8, 9))])
    assert len(result.tokens) == 9 and result.passes == 9 - 4 + 9


def test_a_canvas_that_always_deletes_is_empty() -> None:
    model = tiny.model("full")
    never = Sampling(max_tokens=9, logit_bias={tiny.EOS: 100.0})
    [result] = outcome(tiny_engine(TRAITS, model), [Request("x", prompt(5, 1), never, DREAMON, (7, 8, 9))])
    assert result.tokens == () and result.passes <= 4


@pytest.mark.parametrize("decoder", ["threshold", "dreamon", "daedal"])
def test_holes_keep_their_number_and_never_hold_an_expansion(decoder: str) -> None:
    biased = Sampling(max_tokens=9, min_tokens=9, logit_bias={EXPAND: 100.0})
    seeds = Seeds((None, 5, None, None, 9))
    request = Request("x", prompt(5, 1), biased, Decoding(decoder), seeds=seeds)
    [result] = outcome(tiny_engine(TRAITS, tiny.model("full")), [request])
    assert isinstance(result, Result) and len(result.tokens) == 3 and EXPAND not in result.tokens


@pytest.mark.parametrize("decoder", ["dreamon", "daedal", "wino"])
def test_a_cache_means_nothing_to_them(decoder: str) -> None:
    traits = TRAITS if decoder == "dreamon" else PLAIN
    with pytest.raises(BadParameter, match=f"none for {decoder}"):
        tiny_engine(traits, tiny.model("full")).submit(
            Request("x", (5, 6), Sampling(max_tokens=9), Decoding(decoder, cache="dual"))
        )


def test_models_that_do_not_see_the_whole_text_have_neither() -> None:
    engine = tiny.engine("block", tiny.model("block"))
    for decoding in (DREAMON, DAEDAL):
        with pytest.raises(BadParameter, match="has no other"):
            engine.submit(Request("x", (5, 6), decoding=decoding))
