"""Every decoder on every kind of model that it is defined for: the engine gives what the reference gives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests import tiny
from tests.engine.test_matches_reference import SAMPLINGS, outcome, prompt
from vermilion.decoding.decoders import DECODERS
from vermilion.decoding.reference import Reference
from vermilion.types import Decoding, Request, Sampling

# Settings at which a tiny random model settles several positions a pass, and takes some back.
DECODINGS = {
    "dynamic": [Decoding("dynamic", threshold=0.3, block_length=8, max_steps=3)],
    "factor": [Decoding("factor", factor=1.7, block_length=8)],
    "bound": [Decoding("bound", threshold=0.5, min_threshold=0.1, factor=2.0, block_length=8)],
    "entropy-surest": [Decoding("entropy-surest", threshold=2.0, block_length=8)],
    "sequential": [Decoding("sequential", block_length=8, max_steps=3)],
    "prefix": [Decoding("prefix", threshold=0.1, block_length=8, sub_block=4)],
    "hierarchical": [Decoding("hierarchical", threshold=0.4, min_threshold=0.1, block_length=8)],
    "near": [Decoding("near", threshold=0.4, min_threshold=0.1, radius=2, block_length=8)],
    "stable": [
        Decoding("stable", threshold=0.1, max_divergence=0.5, stable_passes=2, block_length=8),
        Decoding("stable", threshold=0.1, max_divergence=20.0, stable_passes=1, block_length=8, max_steps=5),
    ],
    "credit": [Decoding("credit", threshold=0.3, block_length=8, credit_weight=3.0)],
    "dream-confidence": [
        Decoding("dream-confidence", block_length=30),
        Decoding("dream-confidence", block_length=30, position_temperature=0.4, max_steps=9),
    ],
    "dream-margin": [Decoding("dream-margin", block_length=9, max_steps=4)],
    "dream-entropy": [Decoding("dream-entropy", block_length=16, max_steps=12, eos_last=1)],
    "dream-origin": [Decoding("dream-origin", block_length=16, max_steps=7)],
    "first-hitting": [Decoding("first-hitting", block_length=8)],
    "joint": [
        Decoding("joint", threshold=0.2, edit_threshold=0.2, block_length=8, post_steps=4),
        Decoding("joint", threshold=0.5, edit_threshold=0.0, block_length=8, post_steps=16),
    ],
    "soft-parallel": [
        Decoding("soft-parallel", threshold=0.1, block_length=8),
        Decoding("soft-parallel", threshold=0.3, soft_tokens=4, block_length=8, max_steps=6),
    ],
    "indel": [
        Decoding("indel", threshold=0.2, edit_threshold=0.1, post_steps=6),
        Decoding("indel", threshold=0.2, edit_threshold=0.1, post_steps=0),
    ],
    "wino": [
        Decoding("wino", threshold=0.1, keep_threshold=0.3, block_length=8),
        Decoding("wino", threshold=0.05, keep_threshold=0.9, block_length=16, max_steps=9),
    ],
    "remdm-cap": [Decoding("remdm-cap", remask=0.2, block_length=8, max_steps=12)],
    "remdm-rescale": [Decoding("remdm-rescale", remask=0.4, block_length=8, max_steps=12)],
    "remdm-conf": [Decoding("remdm-conf", block_length=8, max_steps=12)],
    "remdm-loop": [Decoding("remdm-loop", remask=0.3, block_length=8, max_steps=14)],
    "threshold": [Decoding("threshold", threshold=0.1, block_length=8, sub_block=2, eos_last=1)],
}
CASES = [
    (kind, decoding)
    for kind, traits in tiny.TRAITS.items()
    for name, decodings in DECODINGS.items()
    for decoding in decodings
    if DECODERS[name].fits(traits)
]


def test_every_decoder_with_a_rule_of_its_own_is_here_or_beside() -> None:
    assert {"schedule", "entropy", "cumulative", *DECODINGS} == {
        name for name, decoder in DECODERS.items() if decoder.program == "blocks"
    }


@pytest.mark.parametrize(("kind", "decoding"), CASES, ids=str)
def test_alone_and_in_any_company(kind: str, decoding: Decoding) -> None:
    model = tiny.model(kind)
    reference = Reference(model, tiny.TRAITS[kind])
    requests = [
        Request(f"{i}", prompt(5 + 9 * i, i), sampling, decoding) for i, sampling in enumerate(SAMPLINGS)
    ]
    expected = [reference.generate(r.prompt, r.sampling, r.decoding) for r in requests]
    assert outcome(tiny.engine(kind, model), requests[-1:]) == expected[-1:]
    crowded = tiny.engine(kind, model, prefill_chunk=8, max_rows=24)
    assert outcome(crowded, requests) == expected
    # Again: this time the prompts are in the prefix cache.
    assert outcome(crowded, requests[:1]) == expected[:1]


@pytest.mark.parametrize("kind", ["block", "block-shift"])
def test_short_memory_changes_no_text(kind: str) -> None:
    model = tiny.model(kind)
    reference = Reference(model, tiny.TRAITS[kind])
    decodings = [decoding for one, decoding in CASES if one == kind]
    sampling = Sampling(max_tokens=40, ignore_eos=True)
    requests = [Request(f"{i}", prompt(20 + i % 9, i), sampling, one) for i, one in enumerate(decodings)]
    expected = [reference.generate(r.prompt, r.sampling, r.decoding) for r in requests]
    engine = tiny.engine(kind, model, kv_tokens=216, prefill_chunk=16, max_rows=64)
    got = outcome(engine, requests)
    assert engine.scheduler.preemptions > 0
    for request, one, other in zip(requests, got, expected, strict=True):
        # A block that looks at its past begins again, which takes passes.
        again = DECODERS[request.decoding.decoder].keeps_past
        assert (replace(one, passes=other.passes) if again else one) == other
