"""WeDLM against its publisher's code: logits, and what its decoder settles step by step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.goldens import Golden, all_logits
from vermilion.config import EngineConfig
from vermilion.decoding.passes import Pass, Segment
from vermilion.decoding.reordering import Reordering
from vermilion.engine.loading import assemble
from vermilion.engine.worker import Worker
from vermilion.types import Decoding, Request, Sampling

NAMES = ["wedlm-qwen3", "wedlm-qwen2.5"]
RULES = {"a": (3.0, 0.05), "b": (4.0, 0.25), "c": (0.0, 0.02)}
Record = Callable[[str, object], None]


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


def test_its_logits_are_the_publishers(golden: Golden, tmp_path: Path, record_property: Record) -> None:
    """A prompt, and a window whose filled positions lie before its masks, chunked and in one forward."""
    built = golden.built(tmp_path)
    prompt, window = golden.tensors["prompt_ids"].tolist(), golden.tensors["window_ids"].tolist()
    positions = golden.tensors["window_positions"].tolist()
    wanted = torch.cat([golden.tensors["prompt_logits"], golden.tensors["window_logits"][len(prompt) :]])
    error = 0.0
    for chunks in ([0, len(prompt)], [0, 8, 16, len(prompt)]):
        worker = Worker(built.model, 16, 8, built.spec.traits.mask_token_id)
        parts = []
        for first, end in pairwise(chunks):
            clean = Segment(tuple(prompt[first:end]), first, first, sees=first, span=1)
            rows = [clean]
            if end == len(prompt):
                rows += [
                    Segment((window[slot],), positions[slot], slot, slot, span=1, noisy=True)
                    for slot in range(end, len(window))
                ]
            parts.append(all_logits(worker, Pass(tuple(rows))))
        error = max(error, float((torch.cat(parts) - wanted).abs().max()))
    record_property("family", "wedlm")
    record_property("parity_error", error)
    record_property("reference", golden.reference)
    assert error < 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_it_settles_what_the_publishers_decoder_settles(
    golden: Golden, tmp_path: Path, rule: str, record_property: Record
) -> None:
    built = golden.built(tmp_path)
    prompt, steps = tuple(golden.tensors["prompt_ids"].tolist()), golden.tensors[f"trajectory_{rule}"]
    threshold, penalty = RULES[rule]
    config = EngineConfig(kv_tokens=512, page_size=8)
    engine = assemble(built.model, built.spec, tiny.Letters(), config)  # type: ignore[arg-type]
    decoding = Decoding("reorder", threshold=threshold, block_length=8, distance_penalty=penalty)
    sampling = Sampling(max_tokens=100, ignore_eos=True, stop_repetition=False)
    program = engine.submit(Request("a", prompt, sampling, decoding))
    assert isinstance(program, Reordering)
    for step in steps.tolist():
        engine.step()
        known = {**dict(enumerate(program.tokens)), **{p: r.token for p, r in program._filled.items()}}
        assert known == {position: token for position, token in enumerate(step) if token >= 0}
    record_property("family", "wedlm")
    record_property("trajectory", "reorder: windows of reordered masks, entropy and distance")
    record_property("reference", golden.reference)
