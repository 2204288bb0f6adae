"""The engine decodes the reference's text for every published layout: whoever shares its forwards,
however its prompt is cut into chunks, and whatever the prefix cache holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.engine.test_matches_reference import outcome
from tests.parity.checkpoint import Golden, goldens, write
from vermilion.config import EngineConfig
from vermilion.decoding.reference import Reference
from vermilion.engine.loading import assemble
from vermilion.models import catalog
from vermilion.models.build import build
from vermilion.types import Decoding, Request, Sampling

GOLDENS = {golden.name: golden for golden in goldens()}
MASK = 63
SHORT = 4
"""Positions of a block, so that texts of a few tokens cross their edges."""


@pytest.mark.parametrize("name", GOLDENS)
def test_a_text_is_the_same_in_any_company(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "MASK", MASK)
    built = build(catalog.find(str(write(short(GOLDENS[name]), tmp_path))), torch.float64)
    grid = SHORT if built.spec.traits.block_grid else 0
    spec = replace(built.spec, traits=replace(built.spec.traits, mask_token_id=MASK, block_grid=grid))
    decoding = Decoding("threshold", threshold=0.1, block_length=8)
    requests = [
        Request(f"{index}", tuple(GOLDENS[name].cases["whole"]["ids"][:length]), sampling, decoding)
        for index, (length, sampling) in enumerate(
            [
                (5, Sampling(max_tokens=11, ignore_eos=True)),
                (14, Sampling(max_tokens=9, temperature=0.8, seed=3, ignore_eos=True)),
            ]
        )
    ]
    if spec.traits.has_next_token:
        requests += [replace(each, id=f"{each.id}-ar", decoding=Decoding("lossless")) for each in requests]
    reference = Reference(built.model, spec.traits)
    expected = [reference.generate(each.prompt, each.sampling, each.decoding) for each in requests]
    config = EngineConfig(kv_tokens=512, page_size=8, dtype="float64", prefill_chunk=8, max_rows=24)
    engine = assemble(built.model, spec, tiny.Letters(), config)  # type: ignore[arg-type]
    assert outcome(engine, requests) == expected
    # Again: this time the prompts are in the prefix cache.
    assert outcome(engine, requests) == expected


def short(golden: Golden) -> Golden:
    """Experts are chosen for blocks of the same length."""
    routed = {"block_size": SHORT} if "expert_capacity" in golden.config else {}
    return replace(golden, config=golden.config | routed)
