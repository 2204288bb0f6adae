"""Soft inputs: filled positions that the next pass sees as mixtures of tokens, as DMax's sampler has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.engine.test_canvas_programs import tiny_engine
from tests.engine.test_filling import seeds
from tests.engine.test_matches_reference import outcome, prompt
from tests.parity.checkpoint import goldens, write
from vermilion.config import EngineConfig
from vermilion.decoding.editing import EditStep, soft_parallel
from vermilion.decoding.passes import Reading
from vermilion.decoding.reference import fill_gap, fill_seeds
from vermilion.engine.loading import assemble
from vermilion.engine.mixtures import mixtures
from vermilion.models import catalog
from vermilion.models.build import build
from vermilion.types import Decoding, Request, Sampling

SOFT = Decoding("soft-parallel", threshold=0.1, block_length=8)


def test_a_mixture_is_as_long_as_its_parts_and_does_not_notice_its_company() -> None:
    model = tiny.model("block")
    one, other = ((5, math.log(0.75)),), ((7, math.log(0.5)), (9, math.log(0.5)))
    rows, [first, second] = mixtures(model, {3: one, 8: other}, tiny.MASK)
    with torch.no_grad():
        five, seven, nine, mask = model.embed(torch.tensor([5, 7, 9, tiny.MASK]))
        mean = 0.75 * five + 0.25 * mask
        expected = mean / mean.norm() * (0.75 * five.norm() + 0.25 * mask.norm())
        torch.testing.assert_close(first, expected, rtol=1e-6, atol=0)
        mean = (seven + nine) / 2
        expected = mean / mean.norm() * (seven.norm() + nine.norm()) / 2
        torch.testing.assert_close(second, expected, rtol=1e-6, atol=0)
    assert rows.tolist() == [3, 8]
    assert torch.equal(mixtures(model, {0: one}, tiny.MASK)[1][0], first)


def test_a_block_is_over_when_all_are_sure_or_nothing_has_changed() -> None:
    def step(ids: tuple[int | None, ...], shares: tuple[float, ...], left: int = 9) -> EditStep:
        readings = {
            1 + i: Reading(20 + i, math.log(share), top=((20 + i, math.log(share)),))
            for i, share in enumerate(shares)
        }
        return EditStep(SOFT, ids, readings, left, fixed=frozenset({0}))

    # The first mask that is not confident keeps those behind it back, the leftmost settles all the same.
    edited = soft_parallel(step((9, 5, None, None, None), (0.5, 0.3, 0.05, 0.9)))
    assert edited.ids == (9, 20, 21, None, None) and not edited.done
    assert soft_parallel(step((9, 5, None, None), (0.95, 0.05, 0.99))).ids == (9, 20, 21, None)
    assert soft_parallel(step((9, 5, 6), (0.91, 0.95))).done
    assert not soft_parallel(step((9, 5, 6), (0.91, 0.85))).done
    assert soft_parallel(step((9, 20, 21), (0.3, 0.4))).done
    assert soft_parallel(step((9, None, None), (0.01, 0.01), left=1)).ids == (9, 20, 21)


@pytest.mark.parametrize("kind", ["block", "full"])
def test_soft_inputs_change_the_text(kind: str) -> None:
    model = tiny.model(kind)
    sampling = Sampling(max_tokens=40, ignore_eos=True)
    wanted = [Request(f"{n}", prompt(9, 2), sampling, replace(SOFT, soft_tokens=n)) for n in (0, 1, 3)]
    assert len({result.tokens for result in outcome(tiny.engine(kind, model), wanted)}) == 3


def test_gaps_and_holes() -> None:
    model, traits = tiny.model("full"), tiny.TRAITS["full"]
    gap = Request("gap", prompt(9, 1), Sampling(max_tokens=9), SOFT, prompt(7, 50))
    holes = Request("holes", prompt(9, 2), Sampling(max_tokens=9), SOFT, seeds=seeds(2, asks=False))
    expected = [fill_gap(model, traits, gap), fill_seeds(model, traits, holes)]
    assert outcome(tiny_engine(traits, model), [gap, holes]) == expected


def test_a_checkpoint_s_text_is_the_publisher_s(
    tmp_path: Path, record_property: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "MASK", 63)
    [golden] = [one for one in goldens() if one.name == "llada2"]
    built = build(catalog.find(str(write(golden, tmp_path))), torch.float64)
    spec = replace(built.spec, traits=replace(built.spec.traits, mask_token_id=63, block_grid=8))
    config = EngineConfig(kv_tokens=512, page_size=8, dtype="float64")
    engine = assemble(built.model, spec, tiny.Letters(), config)  # type: ignore[arg-type]
    sampling = Sampling(max_tokens=30, ignore_eos=True)
    wanted = []
    for number, each in enumerate(golden.samples):
        decoding = Decoding("soft-parallel", each["threshold"], soft_tokens=each["soft_tokens"])
        wanted.append(Request(f"{number}", tuple(each["prompt"]), sampling, decoding))
    results = outcome(engine, wanted)
    assert [list(result.tokens) for result in results] == [each["tokens"] for each in golden.samples]
    # Ours reads the prompt's last rows in the first pass, which counts as the prefill.
    assert [result.passes + 1 for result in results] == [each["passes"] for each in golden.samples]
    [sampler] = {(each["sampler"], each["reference"]) for each in golden.samples}
    for key, value in zip(("family", "trajectory", "reference"), ("llada2", *sampler), strict=True):
        record_property(key, value)
