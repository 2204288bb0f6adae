"""MDLM and BD3-LM against their publisher's network: whole, by blocks and over cached keys; their sampler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.engine.test_matches_reference import outcome, prompt
from tests.goldens import Golden, all_logits
from vermilion.config import EngineConfig
from vermilion.decoding.blocks import Blocks
from vermilion.decoding.passes import Pass, Segment
from vermilion.decoding.reference import Reference
from vermilion.engine.loading import assemble
from vermilion.engine.worker import Worker
from vermilion.errors import ModelFileError
from vermilion.models.configuration import spec_from_config
from vermilion.types import Decoding, Request, Sampling

Record = Callable[[str, object], None]
MASK = 159


@pytest.mark.parametrize("family", ["bd3lm", "mdlm"])
def test_its_logits_are_the_publishers(family: str, tmp_path: Path, record_property: Record) -> None:
    golden = Golden.read(family)
    built = golden.built(tmp_path)
    assert built.spec.family.name == family and built.spec.traits.mask_token_id == MASK
    clean, masked = (golden.tensors[f"{name}_ids"].tolist() for name in ("clean", "masked"))
    grid = built.spec.traits.block_grid
    wanted = [golden.tensors["clean_logits"], golden.tensors["masked_logits"]]
    ours = [
        all_logits(Worker(built.model, 8, 8, MASK), Pass((Segment(tuple(ids), 0, 0, 0, span=grid),)))
        for ids in (clean, masked)
    ]
    if family == "bd3lm":
        worker = Worker(built.model, 8, 8, MASK)
        for first in (0, 8):
            rows = Segment(tuple(masked[first : first + 8]), first, first, sees=first, span=grid)
            all_logits(worker, Pass((rows,)))
        block = Segment(tuple(masked[16:]), 16, 16, sees=16, span=0, noisy=True)
        ours.append(all_logits(worker, Pass((block,))))
        wanted.append(golden.tensors["cached_logits"])
    error = max(float((a - b).abs().max()) for a, b in zip(ours, wanted, strict=True))
    record_property("family", family)
    record_property("parity_error", error)
    record_property("reference", golden.reference)
    assert error < 1e-5


def test_its_sampler_settles_what_the_publishers_settles(tmp_path: Path, record_property: Record) -> None:
    """First hitting, pass by pass, with the same order of positions on both sides."""
    golden = Golden.read("bd3lm")
    built = golden.built(tmp_path)
    config = EngineConfig(kv_tokens=512)
    engine = assemble(built.model, built.spec, tiny.Letters(), config)  # type: ignore[arg-type]
    given = tuple(golden.tensors["clean_ids"][:8].tolist())
    sampling = Sampling(max_tokens=16, seed=6, ignore_eos=True, stop_repetition=False)
    program = engine.submit(Request("a", given, sampling, Decoding("first-hitting", block_length=4)))
    assert isinstance(program, Blocks)
    for step in golden.tensors["trajectory"].tolist():
        engine.step()
        canvas = program._canvas
        opened = list(canvas.ids) if canvas else []
        known = dict(enumerate(program.tokens))
        known |= {canvas.start + i: token for i, token in enumerate(opened) if token is not None and canvas}
        assert known == {position: token for position, token in enumerate(step) if token >= 0}
    record_property("family", "bd3lm")
    record_property("trajectory", "first hitting, block by block")
    record_property("reference", golden.reference)


@pytest.mark.parametrize("family", ["bd3lm", "mdlm"])
@pytest.mark.parametrize("decoder", ["first-hitting", "threshold"])
def test_the_engine_gives_its_references_tokens(family: str, decoder: str, tmp_path: Path) -> None:
    golden = Golden.read(family)
    built = golden.built(tmp_path, torch.float64)
    reference = Reference(built.model, built.spec.traits)
    decoding = Decoding(decoder, threshold=0.05, block_length=8)
    requests = [
        Request(f"{i}", prompt(5 + 7 * i, i), Sampling(max_tokens=18, seed=i, temperature=t), decoding)
        for i, t in enumerate((0.0, 1.0, 0.7))
    ]
    expected = [reference.generate(r.prompt, r.sampling, r.decoding) for r in requests]
    config = EngineConfig(kv_tokens=512, dtype="float64", prefill_chunk=8, max_rows=96)
    engine = assemble(built.model, built.spec, tiny.Letters(), config)  # type: ignore[arg-type]
    for _ in range(2):
        assert outcome(engine, requests) == expected


def test_a_model_that_is_told_the_time_is_refused() -> None:
    config = {**Golden.read("mdlm").config, "time_conditioning": True}
    with pytest.raises(ModelFileError, match="without time_conditioning"):
        spec_from_config(config, "m")
