"""Dhara answers as its publisher's samplers do: next tokens, drafts that they verify, and blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny
from tests.engine.test_matches_reference import outcome
from tests.parity.checkpoint import goldens, write
from vermilion.config import EngineConfig
from vermilion.decoding.blocks import Blocks
from vermilion.decoding.forward_jobs import Job, Wanted
from vermilion.decoding.program import Task
from vermilion.engine.loading import assemble
from vermilion.engine.worker import Worker
from vermilion.errors import ModelFileError
from vermilion.models import catalog
from vermilion.models.build import build
from vermilion.models.configuration import spec_from_config
from vermilion.types import Decoding, Request, Sampling

GOLDENS = {golden.name: golden for golden in goldens()}
Record = Callable[[str, object], None]


def answers(name: str, folder: Path, requests: list[Request]) -> list[tuple[int, ...]]:
    """Of all of them at once, from pages of 32 tokens."""
    built = build(catalog.find(str(write(GOLDENS[name], folder))))
    config = EngineConfig(kv_tokens=1024, page_size=32, dtype="float32", prefill_chunk=32)
    engine = assemble(built.model, built.spec, tiny.Letters(), config)  # type: ignore[arg-type]
    return [result.tokens for result in outcome(engine, requests)]


@pytest.mark.parametrize("decoder", ["ar", "lossless"])
def test_next_tokens_are_the_publisher_s(decoder: str, tmp_path: Path, record_property: Record) -> None:
    golden = GOLDENS["dhara"]
    requests = [
        Request(
            f"{index}", tuple(each["prompt"]), Sampling(max_tokens=24, ignore_eos=True), Decoding(decoder)
        )
        for index, each in enumerate(golden.samples)
    ]
    expected = [tuple(each["tokens"]) for each in golden.samples]
    assert answers("dhara", tmp_path, requests) == expected
    for key, value in (("family", "dhara"), ("reference", golden.reference)):
        record_property(key, value)
    record_property("trajectory", "next tokens" if decoder == "ar" else "self-speculation, lossless")


def test_blocks_are_filled_as_the_publisher_fills_them(tmp_path: Path, record_property: Record) -> None:
    """Position by position, pass by pass; its blocks begin where the prompt ends, so that prompts of whole
    blocks have them on the grid."""
    golden = GOLDENS["dhara-blocks"]
    built = build(catalog.find(str(write(golden, tmp_path))))
    passes: list[int] = []
    for number, sample in enumerate(golden.samples):
        prompt, size = tuple(sample["prompt"]), len(sample["tokens"])
        decoding = Decoding("threshold", threshold=sample["threshold"], block_length=32)
        program = Blocks(Task(prompt, size, decoding, frozenset()), built.spec.traits.for_canvases())
        worker = Worker(built.model, 8, 32, built.spec.traits.mask_token_id)
        seen: list[list[int]] = []
        while program.finish is None:
            rows = program.plan()
            noisy = [list(segment.ids) for segment in rows.segments if segment.noisy]
            seen += noisy
            wanted = [Wanted(Sampling(), read.position) for read in rows.reads]
            [readings] = worker.run([Job(range(8), rows, wanted, request=f"{number}")])
            program.apply(readings)
        assert program.tokens[len(prompt) :] == sample["tokens"]
        # Ours commits a block in the first pass of the next one.
        assert seen == [state for state in sample["states"] if built.spec.traits.mask_token_id in state]
        passes.append(len(seen))
    assert min(passes) < max(passes), "the threshold decided"
    for key, value in (("family", "dhara"), ("reference", golden.reference)):
        record_property(key, value)
    record_property("trajectory", "block diffusion")


def test_blocks_and_next_tokens_share_no_stored_prefix(tmp_path: Path) -> None:
    """Their settled text sees otherwise, so its keys differ."""
    sample = GOLDENS["dhara"].samples[3]
    prompt = tuple(sample["prompt"] * 3)
    sampling = Sampling(max_tokens=4, ignore_eos=True)
    kinds = (Decoding("ar"), Decoding("threshold", block_length=32), Decoding("ar"))
    alone = [
        answers("dhara", tmp_path / f"{index}", [Request("a", prompt, sampling, decoding)])[0]
        for index, decoding in enumerate(kinds)
    ]
    built = build(catalog.find(str(write(GOLDENS["dhara"], tmp_path / "all"))))
    config = EngineConfig(kv_tokens=1024, page_size=32, dtype="float32")
    engine = assemble(built.model, built.spec, tiny.Letters(), config)  # type: ignore[arg-type]
    hits, after = [], []
    for decoding in kinds:
        after.append(outcome(engine, [Request("a", prompt, sampling, decoding)])[0].tokens)
        hits.append(engine.scheduler.prefix_hit_tokens)
    assert after == alone
    assert hits[:2] == [0, 0] and hits[2] > 0


def test_other_canon_layers_are_refused_by_name() -> None:
    config = GOLDENS["dhara"].config
    for change in ({"canon_set": "AC"}, {"canon_activation": True}, {"canon_residual": False}):
        with pytest.raises(ModelFileError, match="places ABCD"):
            spec_from_config({**config, **change}, "m")
