"""The engine decodes the reference's text for every published layout: whoever shares its forwards,
however its prompt is cut into chunks, and whatever the prefix cache holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.engine.test_matches_reference import outcome, prompt
from tests.models.test_backbone import random_model
from tests.parity.checkpoint import Golden, goldens, write
from tests.tiny_families import spec_of
from vermilion.config import EngineConfig
from vermilion.decoding.reference import Reference
from vermilion.engine.engine import Engine
from vermilion.engine.loading import assemble
from vermilion.models import catalog
from vermilion.models.build import build
from vermilion.models.families import FAMILIES, Family
from vermilion.types import Decoding, Request, Sampling

GOLDENS = {golden.name: golden for golden in goldens()}
MASK = 63
Record = Callable[[str, object], None]
SHORT = 4
"""Positions of a block, so that texts of a few tokens cross their edges."""


@pytest.mark.parametrize("name", GOLDENS)
def test_a_text_is_the_same_in_any_company(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
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
    told(record_property, GOLDENS[name].family, engine)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_s_own_decoder_gives_the_same_in_any_company(
    family: Family, record_property: Record
) -> None:
    """Alone and whole, then beside others in chunks and in padded groups, then behind stored prefixes."""
    spec = spec_of(family)
    if spec.traits.block_grid:
        spec = replace(spec, traits=replace(spec.traits, block_grid=8))
    model = random_model(spec.architecture)
    decoding = spec.presets[spec.default_preset] if spec.presets else Decoding("ar")
    samplings = (
        Sampling(max_tokens=12, ignore_eos=True),
        Sampling(max_tokens=9, temperature=0.8, seed=3, ignore_eos=True),
    )
    asked = [
        Request(f"{index}", prompt(7 + 9 * index, index), samplings[index % 2], decoding)
        for index in range(3)
    ]

    def engine(**settings: int | bool) -> Engine:
        config = EngineConfig(kv_tokens=2048, page_size=32, dtype="float64", **settings)  # type: ignore[arg-type]
        return assemble(model, spec, tiny.Letters(), config)  # type: ignore[arg-type]

    alone = [outcome(engine(prefix_cache=False), [one])[0].tokens for one in asked]
    assert len(set(alone)) > 1
    crowd = engine(prefill_chunk=8, max_rows=64)
    assert [one.tokens for one in outcome(crowd, asked)] == alone
    longer = [replace(one, prompt=(*one.prompt, *prompt(40, 9))) for one in asked]
    first, second = (
        [one.tokens for one in outcome(crowd, longer)],
        [one.tokens for one in outcome(crowd, longer)],
    )
    assert first == second
    told(record_property, family.name, crowd)


def told(record_property: Record, family: str, engine: Engine) -> None:
    record_property("family", family)
    for kind in ("batch composition", "prefill chunks", "prefix hits", "padding"):
        if kind != "prefix hits" or engine.scheduler.prefix_hit_tokens:
            record_property(f"invariance: {kind}", 1)


def short(golden: Golden) -> Golden:
    """Experts are chosen for blocks of the same length; tokens that edit are in the vocabulary."""
    routed = {"block_size": SHORT} if "expert_capacity" in golden.config else {}
    expands = {"expand_token_id": 62} if golden.family == "dreamon" else {}
    return replace(golden, config=golden.config | routed | expands)
