"""The engine gives the reference decoder's tokens, passes and edits, whatever shares its forwards."""

from __future__ import annotations

import random

import pytest

from tests import tiny
from vermilion.decoding.reference import Reference, Result
from vermilion.engine.engine import Engine
from vermilion.types import Decoding, Finish, Request, Sampling

BLOCK_DECODINGS = [
    Decoding("threshold", threshold=0.3, block_length=8),
    Decoding("threshold", threshold=0.05, block_length=5),
    Decoding("schedule", block_length=8, max_steps=3),
    Decoding("entropy", threshold=2.0, block_length=8),
    Decoding("cumulative", threshold=0.02, block_length=6),
]
REVISING = [
    Decoding("threshold", threshold=0.05, block_length=8, revise_below=0.02),
    Decoding("cumulative", threshold=0.001, block_length=8, revise_below=0.05, max_revisions=3),
]
LOSSLESS = [
    Decoding("ar"),
    Decoding("lossless", threshold=0.0, block_length=6),
    Decoding("lossless", threshold=0.001, block_length=8, branches=2),
    Decoding("lossless", threshold=0.0, block_length=4, branches=64),
]
CASES = [(kind, decoding) for kind in tiny.TRAITS for decoding in BLOCK_DECODINGS] + [
    ("causal-shift", decoding) for decoding in [*REVISING, *LOSSLESS]
]
SAMPLINGS = [
    Sampling(max_tokens=30),
    Sampling(max_tokens=17, temperature=0.9, top_p=0.9, top_k=40, min_p=0.01, seed=7),
    Sampling(
        max_tokens=23,
        temperature=0.5,
        seed=3,
        repetition_penalty=1.3,
        presence_penalty=0.5,
        frequency_penalty=0.2,
        logit_bias={5: 2.0, 9: -3.0},
        min_tokens=12,
    ),
]


def prompt(length: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).randrange(2, 90) for _ in range(length))


def outcome(engine: Engine, requests: list[Request]) -> list[Result]:
    programs = {}
    submit = engine.submit

    def watch(request: Request) -> None:
        submit(request)
        programs[request.id] = engine._sequences[request.id].program

    engine.submit = watch  # type: ignore[method-assign]
    events = tiny.run(engine, requests)
    engine.submit = submit  # type: ignore[method-assign]
    results = []
    for request in requests:
        finish = events[request.id][-1]
        assert isinstance(finish, Finish)
        tokens = tuple(programs[request.id].tokens[len(request.prompt) :])
        assert finish.usage.completion_tokens == len(tokens)
        assert tiny.MASK not in tokens
        results.append(Result(tokens, finish.usage.passes, finish.usage.edits))
    return results


@pytest.mark.parametrize(("kind", "decoding"), CASES, ids=str)
def test_alone_and_in_any_company(kind: str, decoding: Decoding) -> None:
    model = tiny.model(kind)
    reference = Reference(model, tiny.TRAITS[kind])
    requests = [
        Request(f"{i}", prompt(5 + 9 * i, i), sampling, decoding) for i, sampling in enumerate(SAMPLINGS)
    ]
    expected = [reference.generate(r.prompt, r.sampling, r.decoding) for r in requests]
    assert len({result.tokens for result in expected}) == len(expected)
    alone = [outcome(tiny.engine(kind, model), [request])[0] for request in requests]
    assert alone == expected
    crowded = tiny.engine(kind, model, prefill_chunk=8, max_rows=24, draft_rows=10_000)
    assert outcome(crowded, requests) == expected
    # Again: this time the prompts are in the prefix cache.
    assert outcome(crowded, requests) == expected


@pytest.mark.parametrize("kind", [kind for kind in tiny.TRAITS if not kind.startswith("full")])
def test_short_memory_changes_nothing(kind: str) -> None:
    model = tiny.model(kind)
    reference = Reference(model, tiny.TRAITS[kind])
    decodings = BLOCK_DECODINGS + (REVISING + LOSSLESS[:2] if kind == "causal-shift" else [])
    requests = [
        Request(f"{i}", prompt(20 + i, i), Sampling(max_tokens=60, ignore_eos=True), decoding)
        for i, decoding in enumerate(decodings)
    ]
    expected = [reference.generate(r.prompt, r.sampling, r.decoding) for r in requests]
    engine = tiny.engine(kind, model, kv_tokens=288, prefill_chunk=16, max_rows=64, draft_rows=10_000)
    assert outcome(engine, requests) == expected
    assert engine.scheduler.preemptions > 0
