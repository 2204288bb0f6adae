"""Seeded canvases: read in one pass or filled, the engine gives what the reference gives, in any company."""

from __future__ import annotations

import random

import pytest

from tests import tiny
from tests.engine.test_matches_reference import BLOCK_DECODINGS, outcome, prompt
from vermilion.decoding.decoders import DECODERS
from vermilion.decoding.reference import Result, fill_seeds, read_seeds
from vermilion.errors import BadRequest
from vermilion.types import Decoding, Finish, Request, Sampling, Seeds, Text

SAMPLINGS = [
    Sampling(max_tokens=40, logprobs=9),
    Sampling(max_tokens=40, logprobs=9, temperature=0.9, top_p=0.9, top_k=40, seed=7),
    Sampling(max_tokens=40, logprobs=9, repetition_penalty=1.3, presence_penalty=0.5, min_tokens=40),
]
DECODINGS = [
    *BLOCK_DECODINGS,
    Decoding("wino", threshold=0.1, keep_threshold=0.3),
    Decoding("ar"),
    Decoding("lossless", threshold=0.3),
    Decoding("relaxed"),
]


def seeds(number: int, asks: bool) -> Seeds:
    """A canvas with holes; the even ones begin with one."""
    dice = random.Random(number)
    ids = [None if dice.random() < 0.4 else dice.randrange(2, 90) for _ in range(3 + 5 * number)]
    ids[0] = None if number % 2 == 0 else 5
    ids[-1] = ids[-1] if number % 3 else None
    ids[1] = None
    wanted = [tuple(dice.sample(range(2, 90), dice.randrange(1, 9))) for token in ids if token is None]
    return Seeds(tuple(ids), tuple(wanted) if asks else ())


def requests(decoding: Decoding, asks: bool) -> list[Request]:
    return [
        Request(f"{i}", prompt(1 + 9 * i, i), SAMPLINGS[i % 3], decoding, seeds=seeds(i, asks))
        for i in range(5)
    ]


@pytest.mark.parametrize("kind", tiny.TRAITS)
def test_a_canvas_is_read_in_one_pass_alone_and_in_any_company(kind: str) -> None:
    model = tiny.model(kind)
    wanted = requests(Decoding("threshold", block_length=4), asks=True)
    if kind == "causal-shift":
        wanted.append(Request("other", prompt(9, 90), Sampling(max_tokens=9), Decoding("lossless")))
    crowded = tiny.engine(kind, model, prefill_chunk=8, max_rows=48)
    for engine in (tiny.engine(kind, model), crowded, crowded):
        got = tiny.run(engine, wanted)
        for request in (request for request in wanted if request.seeds):
            *told, finish = got[request.id]
            expected = read_seeds(model, tiny.TRAITS[kind], request)
            infos = [info for event in told if isinstance(event, Text) for info in event.tokens]
            assert [tuple(id for id, _, _ in info.top) for info in infos] == list(request.seeds.candidates)
            for info, logprobs in zip(infos, expected, strict=True):
                assert [logprob for _, _, logprob in info.top] == pytest.approx(logprobs, abs=1e-9)
                assert info.logprob == pytest.approx(max(logprobs), abs=1e-9)
            assert isinstance(finish, Finish) and finish.reason == "stop"
            assert finish.usage.passes == (tiny.TRAITS[kind].context == "full")
            assert finish.usage.completion_tokens == len(infos)


CASES = [
    (kind, decoding)
    for kind in tiny.TRAITS
    for decoding in DECODINGS
    if DECODERS[decoding.decoder].fits(tiny.TRAITS[kind])
]


@pytest.mark.parametrize(("kind", "decoding"), CASES, ids=str)
def test_holes_are_filled_alone_and_in_any_company(kind: str, decoding: Decoding) -> None:
    model = tiny.model(kind)
    wanted = requests(decoding, asks=False)
    expected = [fill_seeds(model, tiny.TRAITS[kind], request) for request in wanted]
    assert [outcome(tiny.engine(kind, model), [request])[0] for request in wanted] == expected
    crowded = tiny.engine(kind, model, prefill_chunk=8, max_rows=48)
    assert outcome(crowded, wanted) == expected
    # Again: this time the prompts are in the prefix cache.
    assert outcome(crowded, wanted) == expected
    for request, result in zip(wanted, expected, strict=True):
        assert isinstance(result, Result) and len(result.tokens) == request.seeds.ids.count(None)
        if request.sampling.min_tokens:
            assert tiny.EOS not in result.tokens


def test_both_sides_of_a_hole_count() -> None:
    model, traits = tiny.model("causal-shift"), tiny.TRAITS["causal-shift"]
    canvases = [Seeds((None, right), ((*range(2, 90),),)) for right in (7, 8)]
    first, second = (
        read_seeds(model, traits, Request("x", prompt(5, 1), seeds=canvas))[0] for canvas in canvases
    )
    assert first != pytest.approx(second, abs=1e-3)


@pytest.mark.parametrize("canvas", [Seeds((5, 6)), Seeds((None,) * 600)])
def test_what_cannot_be_read_is_refused(canvas: Seeds) -> None:
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"))
    with pytest.raises(BadRequest):
        engine.submit(Request("x", (5, 6), seeds=canvas))
    assert not engine.has_work


def test_more_candidates_than_logprobs_of_an_answer_can_be_read() -> None:
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"))
    wanted = Seeds((5, None, 6), (tuple(range(2, 72)),))
    request = Request("x", (5, 9), Sampling(max_tokens=3, logprobs=70), seeds=wanted)
    [events] = tiny.run(engine, [request]).values()
    [info] = [info for event in events if isinstance(event, Text) for info in event.tokens]
    assert [token for token, _, _ in info.top] == list(range(2, 72))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (Seeds((None,) * 1025), "at most 1024"),
        (Seeds((None, 5), ((3,), (4,))), "1 open places"),
        (Seeds((None, 5), ((),)), "candidates"),
        (Seeds((None, 5), ((tiny.VOCAB,),)), "candidates"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_canvas_that_cannot_be_read_is_refused(wrong: Seeds, reason: str) -> None:
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"), kv_tokens=4096)
    with pytest.raises(BadRequest, match=reason):
        engine.submit(Request("x", (5, 9), Sampling(max_tokens=3), seeds=wrong))
    assert not engine.has_work
