"""Nemotron-Labs-Diffusion against mlx-vlm: logits of both opinions, its blocks pass by pass, its drafts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from tests import tiny
from tests.goldens import Golden, all_logits
from vermilion.config import EngineConfig
from vermilion.decoding.anchored_blocks import AnchoredBlocks
from vermilion.decoding.passes import Pass, Segment
from vermilion.engine.loading import assemble
from vermilion.engine.worker import Worker
from vermilion.models.build import BuiltModel
from vermilion.types import Decoding, Request, Sampling

Record = Callable[[str, object], None]
FAMILY = "nemotron-labs-diffusion"
LENGTH = 40
SAMPLERS = {
    "threshold": Decoding("threshold", threshold=0.1, block_length=8),
    "strict": Decoding("threshold", threshold=0.9, block_length=8),
    "bound": Decoding("bound", threshold=0.2, min_threshold=0.05, factor=2.0, block_length=8),
}


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden.read(FAMILY)


@pytest.fixture(scope="module")
def built(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> BuiltModel:
    return golden.built(tmp_path_factory.mktemp("nemotron"))


def numbers(golden: Golden, name: str) -> list[Any]:
    listed: list[Any] = golden.tensors[name].tolist()
    return listed


def test_its_logits_are_the_publishers(golden: Golden, built: BuiltModel, record_property: Record) -> None:
    """Causal rows in one piece and in chunks, a block that sees itself, and the same positions committed."""
    prompt, end, error = numbers(golden, "prompt_ids"), len(golden.tensors["prompt_ids"]), 0.0
    block, commit = tuple(numbers(golden, "block_ids")), tuple(numbers(golden, "commit_ids"))
    for chunks in ([0, end], [0, 5, 16, 20, end]):
        worker = Worker(built.model, 16, 8, 159)
        parts = [
            all_logits(worker, Pass((Segment(tuple(prompt[a:b]), a, a, a, span=1),)))
            for a, b in pairwise(chunks)
        ]
        noisy = all_logits(worker, Pass((Segment(block, end, end, end, span=0, noisy=True),)))
        clean = all_logits(worker, Pass((Segment(commit, end, end, end, span=1),)))
        pairs = ("prompt_logits", torch.cat(parts)), ("block_logits", noisy), ("commit_logits", clean)
        error = max(error, *(float((ours - golden.tensors[name]).abs().max()) for name, ours in pairs))
    record_property("family", FAMILY)
    record_property("parity_error", error)
    record_property("reference", golden.reference)
    assert error < 1e-5


def answered(built: BuiltModel, golden: Golden, decoding: Decoding) -> tuple[list[int], list[list[int]]]:
    """The answer's tokens, and the block that each denoising pass saw."""
    config = EngineConfig(kv_tokens=512, page_size=8)
    engine = assemble(built.model, built.spec, tiny.Letters(), config)  # type: ignore[arg-type]
    prompt = tuple(numbers(golden, "prompt_ids"))
    sampling = Sampling(max_tokens=LENGTH, ignore_eos=True, stop_repetition=False)
    program = engine.submit(Request("a", prompt, sampling, decoding))
    blocks: list[list[int]] = []
    run = engine.worker.run

    def watched(jobs: Any) -> Any:
        if isinstance(program, AnchoredBlocks):
            blocks.extend(list(s.ids) for s in jobs[0].rows.segments if s.noisy)
        return run(jobs)

    engine.worker.run = watched  # type: ignore[method-assign]
    while engine.has_work:
        engine.step()
    return program.tokens[len(prompt) :], blocks


@pytest.mark.parametrize("name", SAMPLERS)
def test_its_blocks_are_the_publishers_pass_by_pass(
    golden: Golden, built: BuiltModel, name: str, record_property: Record
) -> None:
    tokens, blocks = answered(built, golden, SAMPLERS[name])
    assert blocks == numbers(golden, f"trajectory_{name}")
    assert tokens == numbers(golden, f"answer_{name}")
    record_property("family", FAMILY)
    record_property("trajectory", f"blocks behind an anchor: {SAMPLERS[name].decoder}")
    record_property("reference", golden.reference)


@pytest.mark.parametrize("block_length", [4, 16])
def test_its_drafts_give_the_text_of_its_own_next_tokens(
    golden: Golden, built: BuiltModel, block_length: int, record_property: Record
) -> None:
    """Linear self-speculation and autoregression are one text there and here."""
    assert numbers(golden, "answer_speculative") == numbers(golden, "answer_ar")
    for decoding in (Decoding("ar"), Decoding("lossless", block_length=block_length, draft_nodes=16)):
        assert answered(built, golden, decoding)[0] == numbers(golden, "answer_ar")
    record_property("family", FAMILY)
    record_property("trajectory", "linear self-speculation, lossless")
    record_property("reference", golden.reference)


def test_it_offers_both_its_opinions(built: BuiltModel) -> None:
    assert built.spec.traits.has_next_token and built.spec.default_preset == "lossless"
    assert built.spec.presets["balanced"] == Decoding("threshold", threshold=0.9, block_length=32)
    assert built.spec.architecture.query_growth == 0.1 and built.spec.architecture.query_period == 16
