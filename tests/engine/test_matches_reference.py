"""The engine gives the reference decoder's tokens, passes and edits, whatever shares its forwards."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests import tiny
from vermilion.decoding.reference import Reference, Result
from vermilion.engine.engine import Engine
from vermilion.models import adapters
from vermilion.models.families.names import LLAMA_PRODUCTS
from vermilion.models.linear import LINEAR_KINDS
from vermilion.models.transformer import Transformer
from vermilion.types import Decoding, Finish, Request, Sampling

BLOCK_DECODINGS = [
    Decoding("threshold", threshold=0.3, block_length=8),
    Decoding("threshold", threshold=0.05, block_length=5),
    Decoding("schedule", block_length=8, max_steps=3),
    Decoding("entropy", threshold=2.0, block_length=8),
    Decoding("cumulative", threshold=0.02, block_length=6),
    Decoding("threshold", threshold=0.05, block_length=8, first_block=2),
    Decoding("schedule", block_length=12, max_steps=3, first_block=3),
]
REVISING = [
    Decoding("threshold", threshold=0.05, block_length=8, revise_below=0.02),
    Decoding("cumulative", threshold=0.001, block_length=8, revise_below=0.05, max_revisions=3),
    Decoding("threshold", threshold=0.05, block_length=8, first_block=3, revise_below=0.02),
]
LOSSLESS = [
    Decoding("ar"),
    Decoding("lossless", block_length=4, draft_nodes=8),
    Decoding("lossless", block_length=6, draft_nodes=5, branches=2),
    Decoding("lossless", block_length=8, draft_nodes=5, first_block=2),
    Decoding("lossless", block_length=3, draft_nodes=12, branches=64),
    Decoding("lossless", block_length=4, draft_nodes=3, lookup=16),
    Decoding("relaxed", block_length=4, draft_nodes=8, accept_above=0.2),
    Decoding("relaxed", block_length=5, draft_nodes=12, branches=4, accept_above=0.05),
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
    crowded = tiny.engine(kind, model, prefill_chunk=8, max_rows=24)
    assert outcome(crowded, requests) == expected
    # Again: this time the prompts are in the prefix cache.
    assert outcome(crowded, requests) == expected


@pytest.mark.parametrize("decoding", LOSSLESS, ids=str)
def test_drafts_without_a_draft_head_and_what_one_changes(decoding: Decoding) -> None:
    results = []
    for draft_head in (False, True):
        model = tiny.model("causal-shift", draft_head=draft_head)
        requests = [
            Request(f"{i}", prompt(9 + i, i), sampling, decoding) for i, sampling in enumerate(SAMPLINGS)
        ]
        reference = Reference(model, tiny.TRAITS["causal-shift"])
        expected = [reference.generate(r.prompt, r.sampling, r.decoding) for r in requests]
        assert outcome(tiny.engine("causal-shift", model), requests) == expected
        results.append(expected)
    if decoding.decoder == "lossless":
        assert [one.tokens for one in results[0]] == [one.tokens for one in results[1]]


def as_int8(model: Transformer) -> Transformer:
    """The model with its weights stored as int8, its adapters as they were."""
    owners = [(model, "embedding"), *((layer, name) for layer in model.layers for name in LLAMA_PRODUCTS)]
    for owner, name in owners:
        dense = getattr(owner, name)
        stored = LINEAR_KINDS["int8"](dense.in_size, dense.part_sizes)
        for part in range(len(dense.part_sizes)):
            stored.load_part(part, dense.part_weight(part).detach())
        stored.adapters = dense.adapters
        setattr(owner, name, stored)
    return model


def with_second_weights(model: Transformer) -> Transformer:
    """The model with projections of another for its canvases."""
    adapters.detach(model, adapters.DENOISER)
    adapters.attach(model, adapters.DENOISER, adapters.copy(tiny.model("causal-shift", seed=1)))
    return model


@pytest.mark.parametrize("changed", [as_int8, with_second_weights])
def test_other_kinds_of_weights_and_adapters(changed: Callable[[Transformer], Transformer]) -> None:
    model = changed(tiny.model("causal-shift"))
    texts = []
    for decoding in (Decoding("lossless", block_length=4, draft_nodes=8), Decoding("threshold")):
        requests = [Request(f"{i}", prompt(9 + i, i), one, decoding) for i, one in enumerate(SAMPLINGS)]
        reference = Reference(model, tiny.TRAITS["causal-shift"])
        expected = [reference.generate(r.prompt, r.sampling, r.decoding) for r in requests]
        assert outcome(tiny.engine("causal-shift", model), requests) == expected
        texts.append([result.tokens for result in expected])
    plain = Reference(tiny.model("causal-shift"), tiny.TRAITS["causal-shift"])
    asked = [(r.prompt, r.sampling, Decoding("threshold")) for r in requests]
    assert [plain.generate(*each).tokens for each in asked] != texts[1]


@pytest.mark.parametrize("kind", [kind for kind in tiny.TRAITS if not kind.startswith("full")])
def test_short_memory_changes_nothing(kind: str) -> None:
    model = tiny.model(kind)
    reference = Reference(model, tiny.TRAITS[kind])
    decodings = BLOCK_DECODINGS + (REVISING + LOSSLESS[:2] if kind == "causal-shift" else [])
    requests = [
        Request(f"{i}", prompt(20 + i % 9, i), Sampling(max_tokens=60, ignore_eos=True), decoding)
        for i, decoding in enumerate(decodings)
    ]
    expected = [reference.generate(r.prompt, r.sampling, r.decoding) for r in requests]
    engine = tiny.engine(kind, model, kv_tokens=216, prefill_chunk=16, max_rows=64)
    assert outcome(engine, requests) == expected
    assert engine.scheduler.preemptions > 0


EDGES = [
    (1, Sampling(max_tokens=9)),
    (3, Sampling(max_tokens=1)),
    (4, Sampling(max_tokens=2, min_tokens=2)),
    (7, Sampling(max_tokens=3, temperature=1.0, seed=5)),
    (8, Sampling(max_tokens=4)),
    # An EOS in the midst of a canvas, now and then.
    (9, Sampling(max_tokens=40, logit_bias={tiny.EOS: 4.0}, temperature=1.0, seed=1)),
    (16, Sampling(max_tokens=40, logit_bias={tiny.EOS: 3.0}, temperature=1.0, seed=2)),
]
EDGE_DECODINGS = [
    Decoding("threshold", threshold=0.2, block_length=1),
    Decoding("threshold", threshold=0.05, block_length=8),
    Decoding("schedule", block_length=8, max_steps=1),
    Decoding("entropy", threshold=0.5, block_length=3, max_steps=2),
]
EDGE_CASES = [(kind, decoding) for kind in tiny.TRAITS for decoding in EDGE_DECODINGS] + [
    ("causal-shift", decoding)
    for decoding in (
        Decoding("threshold", threshold=0.05, block_length=1, revise_below=0.1),
        Decoding("schedule", block_length=6, max_steps=2, revise_below=0.2, max_revisions=2),
        Decoding("lossless", block_length=1),
        Decoding("lossless", block_length=2, draft_nodes=1),
        Decoding("lossless", block_length=8, draft_nodes=20, branches=3),
        Decoding("relaxed", block_length=8, draft_nodes=20, accept_above=0.0),
    )
]


@pytest.mark.parametrize(("kind", "decoding"), EDGE_CASES, ids=str)
def test_short_prompts_short_answers_and_an_end_inside_a_canvas(kind: str, decoding: Decoding) -> None:
    model = tiny.model(kind)
    reference = Reference(model, tiny.TRAITS[kind])
    requests = [
        Request(f"{i}", prompt(length, i), sampling, decoding) for i, (length, sampling) in enumerate(EDGES)
    ]
    expected = [reference.generate(r.prompt, r.sampling, r.decoding) for r in requests]
    ended = [result.tokens[-1] == tiny.EOS and len(result.tokens) < 40 for result in expected[-2:]]
    assert any(ended)
    engine = tiny.engine(kind, model)
    assert outcome(engine, requests) == expected
    # Again, with prompts of whole pages wholly in the prefix cache.
    assert outcome(engine, requests) == expected


@pytest.mark.parametrize("kind", tiny.TRAITS)
def test_joining_midway_and_cancelled_neighbours_change_nothing(kind: str) -> None:
    model = tiny.model(kind)
    reference = Reference(model, tiny.TRAITS[kind])
    decodings = BLOCK_DECODINGS + ([*REVISING, *LOSSLESS] if kind == "causal-shift" else [])
    requests = [
        Request(f"{i}", prompt(6 + 7 * (i % 4), i), SAMPLINGS[i % 3], decoding)
        for i, decoding in enumerate(decodings)
    ]
    engine = tiny.engine(kind, model, prefill_chunk=8, max_rows=48)
    programs = {}
    finished = {}
    for step in range(2_000):
        if step % 2 == 0 and step // 2 < len(requests):
            request = requests[step // 2]
            engine.submit(request)
            programs[request.id] = engine._sequences[request.id].program
            # Shares its prompt with the one above, and is gone three steps later.
            engine.submit(Request(f"gone-{step}", request.prompt, request.sampling, decodings[0]))
        engine.abort(f"gone-{step - 3}")
        for name, event in engine.step():
            if isinstance(event, Finish):
                finished[name] = event
        if step > 2 * len(requests) and not engine.has_work:
            break
    assert engine.scheduler.cache.num_held == 0
    for request in requests:
        result = reference.generate(request.prompt, request.sampling, request.decoding)
        assert tuple(programs[request.id].tokens[len(request.prompt) :]) == result.tokens
        assert finished[request.id].usage.passes == result.passes
        assert finished[request.id].usage.edits == result.edits
