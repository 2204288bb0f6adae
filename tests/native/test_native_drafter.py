"""The drafter in the kernels: text stays the base's own, guesses are PyTorch's, whatever shares the pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests import tiny
from tests.engine.drafted import randomize
from tests.engine.test_drafter import LOSSLESS, asked, requests
from tests.engine.test_matches_reference import outcome, prompt
from tests.native import tiny_native
from vermilion.config import EngineConfig
from vermilion.decoding import sampling as oracle
from vermilion.decoding.forward_jobs import Job, Wanted
from vermilion.decoding.passes import Pass, Read, Reading, Segment
from vermilion.decoding.penalties import Adjustment, Adjustments
from vermilion.engine.engine import Engine
from vermilion.engine.loading import engine_over
from vermilion.models.build import fill
from vermilion.models.drafter import Drafter, DrafterShape
from vermilion.models.families import FAMILIES, LLAMA, Architecture, ModelSpec
from vermilion.models.transformer import Transformer
from vermilion.models.weights import TensorFolder
from vermilion.native import library
from vermilion.native.checkpoint_packing import pack_base
from vermilion.native.drafter_packing import pack_drafter
from vermilion.native.packed_file import PackedFile, PackWriter, Weight, in_memory
from vermilion.native.runner import NativeRunner
from vermilion.training.base_states import text_of
from vermilion.training.drafter_loss import Frozen, block_states
from vermilion.types import Decoding, Request, Sampling

SETS = tiny_native.available_sets()

PLAIN = replace(tiny_native.PLAIN, num_layers=4)
ARCHITECTURES = {
    "plain": PLAIN,
    "biased": replace(PLAIN, qkv_bias=True, num_kv_heads=1),
    "normed": replace(PLAIN, qk_norm=True, head_dim=24, num_heads=3, num_kv_heads=3, hidden_size=72),
}
TRAITS = replace(tiny.TRAITS["causal-shift"], drafter=4, gated=False)


def drafter_of(architecture: Architecture) -> Drafter:
    shape = DrafterShape.of(architecture, num_layers=2, block_length=4, rank=6, window=12)
    made = Drafter(architecture, shape, torch.arange(0, tiny.MASK, 2))
    randomize(made, torch.Generator().manual_seed(3))
    for name, parameter in made.named_parameters():
        if "norm" not in name:
            parameter.data *= 0.4
    return made.requires_grad_(False)


@cache
def packed(name: str) -> PackedFile:
    architecture = ARCHITECTURES[name]
    tensors = tiny_native.random_tensors(architecture, spread=1.5)

    def take(wanted: str) -> Weight | None:
        return Weight.of(tensors[wanted]) if wanted in tensors else None

    def write(writer: PackWriter) -> None:
        pack_base(writer, architecture, take, 8)
        pack_drafter(writer, architecture, drafter_of(architecture), take)

    return in_memory(write)


def engine(name: str, *, drafts: bool = True, **settings: object) -> Engine:
    architecture = ARCHITECTURES[name]
    spec = ModelSpec("drafted", architecture, replace(TRAITS, drafter=4 * drafts), FAMILIES[0])
    sizes = {"kv_tokens": 1024, "page_size": 16, "threads": 1, **settings}
    config = EngineConfig(**sizes)  # type: ignore[arg-type]

    def make(num_pages: int, page_size: int) -> NativeRunner:
        return NativeRunner(packed(name), architecture, tiny.MASK, (num_pages, page_size), config.threads)

    return engine_over(make, spec, tiny.Letters(), config)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("decoding", LOSSLESS)
def test_drafted_text_is_the_bases_own(
    name: str, decoding: Decoding, caplog: pytest.LogCaptureFixture
) -> None:
    plain = outcome(engine(name, drafts=False), requests(Decoding("ar")))
    for settings in ({}, {"prefill_chunk": 8, "max_rows": 24, "threads": 2}):
        one = engine(name, **settings)
        found = outcome(one, requests(decoding))
        assert [each.tokens for each in found] == [each.tokens for each in plain]
        assert one._drafted["drafter"] > 0
        # A pass of the drafter that fails ends no request: it would not be noticed otherwise.
        assert not caplog.records


def test_guesses_have_the_same_bits_in_any_company() -> None:
    request = Request("a", prompt(40, 4), Sampling(max_tokens=16))
    alone = [readings for _, readings, _ in asked(engine("plain"), request)]
    for settings, warm in (({}, True), ({"prefill_chunk": 16, "max_rows": 32, "threads": 2}, False)):
        one = engine("plain", **settings)
        if warm:
            tiny.run(one, [Request("b", request.prompt, Sampling(max_tokens=2))])
            assert one.scheduler.cache.num_idle
        assert [readings for _, readings, _ in asked(one, request)] == alone


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_guesses_are_close_to_those_of_training(name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    model = Transformer(architecture)
    tensors = tiny_native.random_tensors(architecture, spread=1.5)
    save_file(tensors, tmp_path / "model.safetensors")
    fill(model, TensorFolder(tmp_path), LLAMA, torch.float32, "cpu")
    drafter = drafter_of(architecture)
    frozen = Frozen.of(model, drafter.vocabulary_W)
    seen = asked(engine(name), Request("a", prompt(21, 3), Sampling(max_tokens=24)))
    assert len(seen) > 10
    errors = [_error(drafter, frozen, model, each) for each in seen]
    assert max(errors) < 0.35, errors


@pytest.mark.parametrize("isa", SETS)
def test_guesses_are_read_as_from_logits_of_the_whole_vocabulary(isa: str) -> None:
    """The kernels read only the rows of the drafter's head; what it cannot say is as good as impossible."""
    allowed = np.packbits([i % 3 != 1 for i in range(tiny.VOCAB)], bitorder="little").tobytes()
    changes = Adjustments.of([Adjustment(3, 1.5, -0.5), Adjustment(8, 1.0, 6.0), Adjustment(60, 1.2, 2.0)])
    samplings = (Sampling(), Sampling(temperature=1.5, seed=3), Sampling(temperature=2.0, seed=5, top_k=5))
    wanted = [
        Wanted(sampling, 20 + i, top=top, targets=(4, 7), adjustments=bias, allowed=mask, draw=i)
        for i, (sampling, top, bias, mask) in enumerate(
            product(samplings, (8, 20), (None, changes), (b"", allowed))
        )
    ]
    masks = len(wanted) - 1
    rows = Segment((5, *(masks * [tiny.MASK])), 19, 19, 0, 0, masked=(False, *(masks * [True])))
    reads = tuple(Read(i, want.position, "next", want.targets) for i, want in enumerate(wanted))
    one = NativeRunner(packed("plain"), ARCHITECTURES["plain"], tiny.MASK, (4, 16), 1, isa)
    one.keep_logits = True
    [ours] = one.draft([Job([1, 0, 2], Pass((rows,), reads), wanted)])
    logits = torch.from_numpy(one.logits.astype(np.float64))
    assert set(torch.where(logits[0] > -1e29)[0].tolist()) == set(range(0, tiny.MASK, 2))
    theirs = oracle.read(logits, wanted, tiny.MASK)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.token == other.token
        assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert mine.target_logprobs[0] == pytest.approx(other.target_logprobs[0], abs=1e-4)
        assert max(mine.target_logprobs[1], other.target_logprobs[1]) < -1e29
        assert [token for token, _ in mine.top] == [token for token, _ in other.top]
    # By Gumbel's noise, which belongs to a token whatever row it has in the head.
    noisy = [Wanted(Sampling(temperature=1.5, seed=3), want.position) for want in wanted]
    [ours] = one.draft([Job([1, 0, 2], Pass((rows,), reads), noisy)])
    for row, (want, mine) in enumerate(zip(noisy, ours, strict=True)):
        noise = [library.load().vermilion_noise(3, want.position, token) for token in range(tiny.VOCAB)]
        assert mine.token == int((torch.from_numpy(one.logits[row]) / 1.5 + torch.tensor(noise)).argmax())


def _error(
    drafter: Drafter,
    frozen: Frozen,
    model: Transformer,
    seen: tuple[Job, Sequence[Reading], tuple[int, ...]],
) -> float:
    """Largest difference of a log-probability among the likeliest tokens."""
    job, readings, tokens = seen
    length = len(job.rows.reads)
    text = text_of(model, [*tokens, *([0] * length)], 0, drafter.shape.taps)
    anchors = torch.tensor([len(tokens) - 1])
    hidden_RH = block_states(drafter, frozen, text, anchors, anchors[:, None] + torch.arange(length))
    logprob_RW = (hidden_RH @ frozen.head_WH.T).log_softmax(-1)
    place = {token: index for index, token in enumerate(drafter.vocabulary_W.tolist())}
    return max(
        abs(logprob - float(logprob_RW[row, place[token]]))
        for row, reading in enumerate(readings)
        for token, logprob in reading.top[:3]
    )
