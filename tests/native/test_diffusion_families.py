"""Families with layers of their own, in their published layouts: the kernels against PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.goldens import Golden, all_logits, write_checkpoint
from tests.native import oracle, tiny_native
from tests.native.oracle import Oracle, OracleRow, unpacked
from tests.native.tiny_native import ARCHITECTURES, causal, packed
from vermilion.decoding.forward_jobs import Job, Wanted
from vermilion.decoding.passes import Pass, Read, Segment
from vermilion.engine.worker import Worker
from vermilion.models.build import BuiltModel, build
from vermilion.models.catalog import ModelFiles
from vermilion.native.checkpoint_packing import open_packed
from vermilion.native.packed_file import Array
from vermilion.native.runner import NativeRunner
from vermilion.types import Sampling

tiny_native.available_sets()
GEMMA: dict[str, Any] = {
    "model_type": "diffusion_gemma",
    "canvas_length": 12,
    "initializer_range": 0.17,
    "text_config": {
        "vocab_size": 150, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32,
        "num_global_key_value_heads": 1, "max_position_embeddings": 512, "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_experts": 6, "top_k_experts": 2,
        "moe_intermediate_size": 24, "eos_token_id": [1, 106, 50],
    },
}  # fmt: skip
SMOLDLM: dict[str, Any] = {
    "model_type": "smoldlm", "n_layer": 2, "n_embd": 48, "n_head": 3, "n_kv_head": 3, "mlp_hidden": 80,
    "vocab_size": 150, "seq_len": 512, "block_size": 8, "mask_token_id": 149, "eos_token_id": 1,
}  # fmt: skip
PROMPT = [(37 * i + 11) % 140 + 4 for i in range(24)]
CANVAS = [(53 * i + 7) % 140 for i in range(12)]
PAGE, PAGES = 8, (3, 0, 5, 1, 7)


class Checkpoint:
    """One, as each backend reads it."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        written = write_checkpoint(config, folder / "tiny")
        tensors = load_file(written / "model.safetensors")
        for name, tensor in tensors.items():
            if tensor.dim() > 1:
                tensors[name] = eight_bits(tensor)
            # Gemma's scores are not divided by anything: without this they would be all or nothing.
            if name.endswith("self_attn.q_norm.weight"):
                tensors[name] *= 0.3
        save_file(tensors, written / "model.safetensors")
        files = ModelFiles("folder", "tiny", written, None)
        self.built: BuiltModel = build(files)
        spec = self.built.spec
        self.mask = spec.traits.mask_token_id
        file = open_packed(files, spec, "q8")
        self.native = NativeRunner(file, spec.architecture, self.mask, (8, PAGE), 2)
        self.native.keep_logits = True
        self.torch = Worker(self.built.model, 8, PAGE, self.mask)

    def both(self, rows: Pass, purpose: str = "mask") -> tuple[Array, Array]:
        """Logits of all rows of a pass of the request `a`, by the kernels and by PyTorch."""
        reads = tuple(Read(row, row, purpose) for row in range(rows.num_rows))  # type: ignore[arg-type]
        job = Job(PAGES, Pass(rows.segments, reads), [Wanted(Sampling(), 0)] * len(reads), request="a")
        theirs = all_logits(self.torch, rows, PAGES).numpy()
        if purpose == "canvas":
            self.torch.run([job])
        self.native.run([job])
        return self.native.logits, theirs

    def unrounded(self, rows: list[OracleRow], monkeypatch: pytest.MonkeyPatch) -> Array:
        """What the kernels would give if they did not round what goes into products."""
        with monkeypatch.context() as patch:
            patch.setattr(oracle, "rounded", lambda x: x)
            return Oracle(self.native._packed, self.built.spec.architecture).logits(rows)


def eight_bits(weight: torch.Tensor) -> torch.Tensor:
    """Rounded to what the kernels keep exactly: 255 levels for each 32 inputs."""
    filled = torch.nn.functional.pad(weight, (0, -weight.shape[-1] % 32))
    blocks = filled.unflatten(-1, (-1, 32))
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).half().float()
    return (
        ((blocks / scale).round().clamp(-127, 127) * scale).flatten(-2)[..., : weight.shape[-1]].contiguous()
    )


def off(ours: Array, theirs: Array) -> float:
    """The median row's mean difference, by the spread of what it should be."""
    return float(np.median(np.abs(ours - theirs).mean(1)) / theirs.std())


@pytest.mark.parametrize(
    "config",
    [*(Golden.read(name).config for name in ("bd3lm", "mdlm")), SMOLDLM],
    ids=["bd3lm", "mdlm", "smoldlm"],
)
def test_blocks_of_masks_give_pytorchs_logits(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERMILION_HOME", str(tmp_path / "home"))
    one = Checkpoint(config, tmp_path)
    grid = one.built.spec.traits.block_grid
    whole = Segment(tuple(PROMPT), 0, 0, 0, span=grid)
    assert off(*one.both(Pass((whole,)))) < 0.025
    block = Segment((PROMPT[3], *[one.mask] * 7), 24, 24, sees=24, span=0, noisy=True)
    ours, theirs = one.both(Pass((block,)))
    assert off(ours, theirs) < 0.025
    ends = [(i // grid + 1) * grid if grid else 24 for i in range(24)]
    rows = [OracleRow(id, i, tuple(range(end))) for i, (id, end) in enumerate(zip(PROMPT, ends, strict=True))]
    rows += [OracleRow(id, 24 + i, tuple(range(32)), True, False, 24) for i, id in enumerate(block.ids)]
    assert off(one.unrounded(rows, monkeypatch)[24:], theirs) < 1e-3


def test_diffusion_gemma_gives_pytorchs_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt; a canvas; the same again, told of the last pass; the next one beside its commit."""
    monkeypatch.setenv("VERMILION_HOME", str(tmp_path / "home"))
    one = Checkpoint(GEMMA, tmp_path)
    assert off(*one.both(Pass((causal(PROMPT),)))) < 0.025
    canvas = Segment(tuple(CANVAS), 24, 24, sees=24, span=0, noisy=True)
    ours, theirs = one.both(Pass((canvas,)), "canvas")
    assert off(ours, theirs) < 0.025
    rows = [OracleRow(id, i, tuple(range(i + 1))) for i, id in enumerate(PROMPT)]
    rows += [OracleRow(id, 24 + i, tuple(range(36)), True, False, 24) for i, id in enumerate(CANVAS)]
    assert off(one.unrounded(rows, monkeypatch)[24:], theirs) < 1e-3
    assert one.native._signals is not None
    mine, size = one.native._signals._kept, one.built.spec.architecture.hidden_size
    soft = one.built.model.soft_embedding(torch.softmax(torch.from_numpy(ours), -1)).numpy()
    assert off(mine["a"][:, :size], soft) < 1e-4
    # From here on both hear the same.
    mine["a"][:, :size] = one.torch.states.of("a").tensors["signal"].numpy()
    told = Segment(tuple(CANVAS[::-1]), 24, 24, sees=24, span=0, noisy=True, conditioned=True)
    heard = one.both(Pass((told,)), "canvas")
    assert off(*heard) < 0.025
    deaf = Segment(told.ids, 24, 24, sees=24, span=0, noisy=True)
    assert off(one.both(Pass((deaf,)))[0], heard[1]) > 0.1
    second = Segment(tuple(CANVAS[:4]), 36, 36, sees=36, span=0, noisy=True)
    assert off(*one.both(Pass((causal(CANVAS, 24), second)))) < 0.025
    one.native.release("a")
    assert not mine


def test_a_signal_is_the_mean_embedding_and_is_heard() -> None:
    """In float64, whatever else is read in the pass."""
    a, file = ARCHITECTURES["sandwich"], packed("sandwich")
    one = NativeRunner(file, a, -1, (8, PAGE), 2)
    one.keep_logits = True
    count = 40  # more than are answered at a time
    ids = tuple((29 * i + 3) % 90 for i in range(count))
    wanted = [Wanted(Sampling(), i, divisor=0.5) for i in range(count)]
    reads = tuple(Read(i, i, "canvas" if i % 3 else "mask") for i in range(count))
    exactly = Oracle(file, a)
    kept: Array | None = None
    for conditioned in (False, True):
        segment = Segment(
            ids[::3] if conditioned else ids, 0, 0, 0, span=0, noisy=True, conditioned=conditioned
        )
        rows = len(segment.ids)
        [_] = one.run([Job(PAGES, Pass((segment,), reads[:rows]), wanted[:rows], request="a")])
        listed = [OracleRow(i, n, tuple(range(rows)), True, False, 0) for n, i in enumerate(segment.ids)]
        exact = exactly.logits(listed, signal=kept)
        assert np.median(np.abs(one.logits - exact).mean(1)) / exact.std() < 1e-5
        assert one._signals is not None
        made = one._signals._kept["a"]
        raised = np.exp((exact - exact.max(1, keepdims=True)) / 0.5)[[i % 3 > 0 for i in range(rows)]]
        embedding = unpacked(file, "embedding")
        mean = raised / raised.sum(1, keepdims=True) @ embedding * a.embedding_scale
        assert np.median(np.abs(made - mean).mean(1)) / mean.std() < 1e-5
        kept = one._signals._kept["a"] = made[: -(-count // 3)]
