"""`renoise` and `reorder` in the engine give their reference's tokens and passes, in any company."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests import tiny
from tests.engine.test_matches_reference import SAMPLINGS, outcome, prompt
from vermilion.config import EngineConfig
from vermilion.decoding.reference import Reference, denoise
from vermilion.engine.engine import Engine
from vermilion.engine.loading import assemble
from vermilion.errors import BadRequest
from vermilion.models.families import FAMILIES, ModelSpec, Traits
from vermilion.models.self_conditioning import SelfConditioning
from vermilion.models.transformer import Transformer
from vermilion.types import Canvas, Decoding, Grammar, Request, Sampling

NOISE = Traits("causal", False, -1, (tiny.EOS,), noise="uniform")
ORDER = Traits("causal", False, tiny.MASK, (tiny.EOS,), canvas="causal")
TWO_HEADED = Traits("causal", False, tiny.MASK, (tiny.EOS,), next_token=True)
CAUSAL_MASKS = Traits("causal", True, tiny.MASK, (tiny.EOS,), canvas="causal")
RENOISE = Decoding("renoise", threshold=0.1, block_length=16, max_steps=6)
CASES = [
    (NOISE, RENOISE),
    (NOISE, replace(RENOISE, threshold=3.0, max_steps=9, stop_entropy=3.0)),
    (NOISE, replace(RENOISE, threshold=20.0, stable_steps=0, stop_entropy=2.0, first_block=4)),
    (NOISE, replace(RENOISE, threshold=5.0, min_temperature=0.9, max_temperature=0.9, stable_steps=3)),
    (ORDER, Decoding("reorder", threshold=0.4, block_length=16)),
    (ORDER, Decoding("reorder", threshold=2.5, block_length=8, distance_penalty=0.2)),
    (ORDER, Decoding("reorder", threshold=0.0, block_length=5)),
    (ORDER, Decoding("reorder", threshold=100.0, block_length=6)),
    (TWO_HEADED, Decoding("threshold", threshold=0.3, block_length=8)),
    (TWO_HEADED, Decoding("threshold", threshold=0.05, block_length=5, first_block=2)),
    (TWO_HEADED, Decoding("schedule", block_length=9, max_steps=3)),
    (TWO_HEADED, Decoding("entropy", threshold=2.0, block_length=8)),
    (TWO_HEADED, Decoding("bound", threshold=0.3, min_threshold=0.05, factor=1.5, block_length=8)),
    (TWO_HEADED, Decoding("stable", threshold=0.05, max_divergence=1.0, block_length=7)),
    (TWO_HEADED, Decoding("cumulative", threshold=0.02, block_length=1)),
]
SPECULATIVE = [
    Decoding("ar"),
    Decoding("lossless", block_length=4, draft_nodes=8),
    Decoding("lossless", block_length=6, draft_nodes=5, branches=2, lookup=8),
    Decoding("relaxed", block_length=5, draft_nodes=12, branches=4, accept_above=0.05),
]


def tiny_model(traits: Traits) -> Transformer:
    """Of the tiny kind, with self-conditioning where noise is uniform."""
    built = tiny.model("full")
    if traits.noise == "uniform":
        built.self_conditioning = SelfConditioning(tiny.ARCHITECTURE, type(built.embedding)).double()
        generator = torch.Generator().manual_seed(5)
        for parameter in built.self_conditioning.parameters():
            parameter.data.normal_(0, 0.5, generator=generator)
    return built


def tiny_engine(traits: Traits, model: Transformer, **settings: object) -> Engine:
    config = EngineConfig(**{"kv_tokens": 1024, "page_size": 8, "dtype": "float64", **settings})  # type: ignore[arg-type]
    spec = ModelSpec("tiny", tiny.ARCHITECTURE, traits, FAMILIES[0])
    return assemble(model, spec, tiny.Letters(), config)  # type: ignore[arg-type]


@pytest.mark.parametrize(("traits", "decoding"), CASES, ids=str)
def test_alone_and_in_any_company(traits: Traits, decoding: Decoding) -> None:
    model = tiny_model(traits)
    requests = [
        Request(f"{i}", prompt(5 + 9 * i, i), sampling, decoding) for i, sampling in enumerate(SAMPLINGS)
    ]
    expected = [denoise(model, traits, r.prompt, r.sampling, r.decoding) for r in requests]
    assert len({result.tokens for result in expected}) == len(expected)
    alone = [outcome(tiny_engine(traits, model), [request])[0] for request in requests]
    assert alone == expected
    crowded = tiny_engine(traits, model, prefill_chunk=8, max_rows=48)
    assert outcome(crowded, requests) == expected
    # Again: this time the prompts are in the prefix cache, to the token.
    assert outcome(crowded, requests) == expected


@pytest.mark.parametrize("decoding", SPECULATIVE, ids=str)
@pytest.mark.parametrize("traits", [TWO_HEADED, CAUSAL_MASKS], ids=["two-headed", "causal-masks"])
def test_drafts_of_other_masks_are_verified_the_same(traits: Traits, decoding: Decoding) -> None:
    model = tiny_model(traits)
    requests = [Request(f"{i}", prompt(9 + 5 * i, i), one, decoding) for i, one in enumerate(SAMPLINGS)]
    reference = Reference(model, traits)
    expected = [reference.generate(r.prompt, r.sampling, r.decoding) for r in requests]
    assert outcome(tiny_engine(traits, model), requests) == expected
    crowded = tiny_engine(traits, model, prefill_chunk=8, max_rows=48)
    assert outcome(crowded, requests) == expected
    if decoding.decoder == "lossless":
        alone = [reference.generate(r.prompt, r.sampling, Decoding("ar")).tokens for r in requests]
        assert [result.tokens for result in expected] == alone


@pytest.mark.parametrize("traits", [NOISE, ORDER, TWO_HEADED], ids=["noise", "order", "two-headed"])
def test_a_preempted_canvas_ends_the_same(traits: Traits) -> None:
    model = tiny_model(traits)
    decoding = {NOISE: CASES[1][1], ORDER: CASES[4][1], TWO_HEADED: CASES[8][1]}[traits]
    sampling = Sampling(max_tokens=40, temperature=0.8, seed=4, ignore_eos=True)
    requests = [Request(f"{i}", prompt(9 + 5 * i, i), sampling, decoding) for i in range(4)]
    expected = [denoise(model, traits, r.prompt, r.sampling, r.decoding).tokens for r in requests]
    scarce = tiny_engine(traits, model, kv_tokens=200)
    results = outcome(scarce, requests)
    assert scarce.scheduler.preemptions > 0
    assert [result.tokens for result in results] == expected


def test_a_canvas_is_shown_before_it_is_settled_and_never_flickers_behind_an_end() -> None:
    request = Request("a", prompt(7, 1), Sampling(max_tokens=24, ignore_eos=True), RENOISE, canvas=True)
    events = tiny.run(tiny_engine(NOISE, tiny_model(NOISE)), [request])["a"]
    canvases = [event for event in events if isinstance(event, Canvas)]
    assert any(canvas.masked for canvas in canvases)
    assert [canvas.progress for canvas in canvases] == sorted(canvas.progress for canvas in canvases)
    assert canvases[-1].settled == ((0, len(canvases[-1].text)),)


@pytest.mark.parametrize("traits", [NOISE, ORDER], ids=["noise", "order"])
def test_what_these_cannot_do_is_refused_with_the_reason(traits: Traits) -> None:
    decoding = RENOISE if traits is NOISE else Decoding("reorder")
    engine = tiny_engine(traits, tiny_model(traits))
    plain = Request("a", prompt(7, 1), Sampling(max_tokens=8), decoding)
    refused = {
        "grammar": replace(plain, grammar=Grammar("json_object")),
        "another decoder": replace(plain, decoding=Decoding("threshold")),
        "a gap": replace(plain, suffix=(5, 6, 7)),
    }
    if traits is NOISE:
        refused["logprobs"] = replace(plain, sampling=replace(plain.sampling, logprobs=0))
    for wrong in refused.values():
        with pytest.raises(BadRequest):
            engine.check(wrong)
    engine.check(plain)
