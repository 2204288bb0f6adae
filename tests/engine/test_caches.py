"""Approximate caches of models that see everything: the engine gives what the same approximation gives
without pages, in any company; and says which it used."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests import tiny
from tests.engine.test_matches_reference import SAMPLINGS, outcome, prompt
from vermilion.decoding.caches import CACHES, runs_all, window
from vermilion.decoding.reference import Reference
from vermilion.errors import BadParameter
from vermilion.types import Decoding, Finish, Request, Sampling

CACHED = [
    Decoding("threshold", threshold=0.1, block_length=8, cache="prefix"),
    Decoding("schedule", block_length=8, cache="dual"),
    Decoding("dynamic", threshold=0.2, block_length=8, cache="dual", refresh_every=3),
    Decoding("schedule", block_length=8, cache="vicinity", cache_window=4, warm_steps=2),
    Decoding("stable", threshold=0.1, max_divergence=0.5, block_length=8, cache="vicinity", cache_window=3),
    Decoding("joint", threshold=0.2, edit_threshold=0.2, block_length=8, post_steps=3, cache="dual"),
    Decoding("schedule", block_length=8, cache="vicinity", cache_window=0),
    Decoding("soft-parallel", threshold=0.1, soft_tokens=2, block_length=8, cache="vicinity", cache_window=4),
]
KINDS = ("full", "full-shift")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decoding", CACHED, ids=lambda d: f"{d.decoder}-{d.cache}-{d.refresh_every}")
def test_alone_and_in_any_company(kind: str, decoding: Decoding) -> None:
    model = tiny.model(kind)
    reference = Reference(model, tiny.TRAITS[kind])
    requests = [
        Request(f"{i}", prompt(5 + 9 * i, i), sampling, decoding) for i, sampling in enumerate(SAMPLINGS)
    ]
    expected = [reference.generate(r.prompt, r.sampling, r.decoding) for r in requests]
    assert outcome(tiny.engine(kind, model), requests[:1]) == expected[:1]
    crowded = tiny.engine(kind, model, max_rows=24)
    assert outcome(crowded, requests) == expected
    # Beside exact requests.
    mixed = [requests[0], replace(requests[1], decoding=Decoding("schedule", block_length=8))]
    exact = reference.generate(mixed[1].prompt, mixed[1].sampling, mixed[1].decoding)
    assert outcome(crowded, mixed) == [expected[0], exact]


def test_short_memory_changes_no_text() -> None:
    model = tiny.model("full")
    reference = Reference(model, tiny.TRAITS["full"])
    sampling = Sampling(max_tokens=40, ignore_eos=True)
    requests = [Request(f"{i}", prompt(20 + i, i), sampling, one) for i, one in enumerate(CACHED)]
    engine = tiny.engine("full", model, kv_tokens=216)
    got = outcome(engine, requests)
    assert engine.scheduler.preemptions > 0
    for request, result in zip(requests, got, strict=True):
        assert result.tokens == reference.generate(request.prompt, sampling, request.decoding).tokens


def test_the_caches_differ_from_exact_decoding_and_from_each_other() -> None:
    model = tiny.model("full")
    reference = Reference(model, tiny.TRAITS["full"])
    sampling = Sampling(max_tokens=40, ignore_eos=True)
    texts = {
        name: reference.generate(
            prompt(9, 2), sampling, Decoding("schedule", block_length=8, cache=name, cache_window=4)
        ).tokens
        for name in CACHES
    }
    assert len(set(texts.values())) == len(CACHES)
    always = Decoding("schedule", block_length=8, cache="dual", refresh_every=1)
    assert reference.generate(prompt(9, 2), sampling, always).tokens == texts["none"]


def test_the_usage_names_the_cache_and_few_rows_run() -> None:
    model = tiny.model("full")
    rows = {}
    for name in CACHES:
        engine = tiny.engine("full", model)
        decoding = Decoding("schedule", block_length=8, cache=name, cache_window=2)
        request = Request("x", prompt(60, 1), Sampling(max_tokens=32, ignore_eos=True), decoding)
        finish = tiny.run(engine, [request])["x"][-1]
        assert isinstance(finish, Finish)
        assert finish.usage.cache == ("" if name == "none" else name)
        assert finish.usage.cached_passes == (0 if name == "none" else 28)
        rows[name] = engine.timing.rows
    assert rows["dual"] == 4 * 92 + 28 * 8
    assert rows["dual"] < rows["vicinity"] < rows["prefix"] < rows["none"]


def test_only_models_that_see_everything_take_one() -> None:
    engine = tiny.engine("block", tiny.model("block"))
    with pytest.raises(BadParameter, match=r"Its own is exact"):
        engine.submit(Request("x", (5, 6), decoding=Decoding("threshold", block_length=4, cache="dual")))
    with pytest.raises(BadParameter, match="none, prefix, dual, vicinity"):
        engine.submit(Request("x", (5, 6), decoding=Decoding("threshold", block_length=4, cache="most")))
    assert not engine.has_work


def test_windows_and_refreshes() -> None:
    block = range(20, 28)
    assert window(Decoding(cache="prefix"), block, 50, shift=True) == range(19, 50)
    assert window(Decoding(cache="dual"), block, 50, shift=False) == block
    assert window(Decoding(cache="vicinity", cache_window=16), block, 50, shift=True) == range(4, 44)
    assert window(Decoding(cache="vicinity", cache_window=30), block, 50, shift=False) == range(50)
    every = Decoding(cache="dual", refresh_every=3)
    assert [step for step in range(8) if runs_all(every, step)] == [0, 3, 6]
    warm = Decoding(cache="vicinity", warm_steps=2)
    assert [step for step in range(8) if runs_all(warm, step)] == [0, 1]
