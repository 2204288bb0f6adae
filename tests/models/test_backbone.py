"""Everything the backbone computes, against the same written plainly: whole, in pieces, in any slots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.models import plain
from vermilion.decoding.forward_jobs import Job
from vermilion.decoding.passes import Pass, Segment
from vermilion.engine.worker import Worker
from vermilion.models.attention import LayeredAttention, Visibility, explicit
from vermilion.models.build import base_tensors, fill
from vermilion.models.experts import ExpertLayer, grouped
from vermilion.models.families import LLAMA, Architecture, Experts, LayerKind, RopeScaling
from vermilion.models.linear import LINEAR_KINDS
from vermilion.models.transformer import Rows, Transformer
from vermilion.models.weights import TensorFolder

PLAIN = Architecture(3, 16, 4, 2, 8, 24, 31, 64)
SIGMOID = Experts(8, 3, 12, 20, "sigmoid", router_bias=True, scale=2.5, num_groups=4, num_active_groups=2)
SOFTMAX = Experts(6, 2, 10)
YARN = RopeScaling("yarn", {"factor": 4, "original_max_position_embeddings": 16})
UNEVEN = (
    LayerKind(window=4),
    LayerKind(head_dim=12, num_kv_heads=1, rope_theta=50.0, values_are_keys=True),
    LayerKind(window=3, experts=SOFTMAX, dense=False),
)
SHAPES = {
    "plain": PLAIN,
    "gelu": replace(PLAIN, activation="gelu", output_bias=True, ffn_bias=True, qkv_bias=True),
    "gelu-tanh": replace(PLAIN, activation="gelu_tanh", attention_scale=0.9, tied_embeddings=False),
    "capped": replace(PLAIN, logit_softcap=3.0, embedding_scale=4.0, value_norm=True),
    "joint-norm": replace(PLAIN, qk_norm=True, joint_qk_norm=True),
    "partial": replace(PLAIN, rope_fraction=0.5, qk_norm=True),
    "proportional": replace(PLAIN, rope_fraction=0.5, rope_scaling=RopeScaling("proportional")),
    "yarn": replace(PLAIN, rope_scaling=YARN),
    "windows": replace(PLAIN, layers=(LayerKind(window=3), LayerKind(), LayerKind(window=5, rotated=False))),
    "uneven": replace(PLAIN, layers=UNEVEN, qk_norm=True),
    "softmax": replace(PLAIN, layers=(LayerKind(experts=SOFTMAX, dense=False),) * 3),
    "summing": replace(PLAIN, layers=(LayerKind(experts=replace(SOFTMAX, normalized=False)),) * 3),
    "sigmoid": replace(PLAIN, layers=(LayerKind(), *(LayerKind(experts=SIGMOID, dense=False),) * 2)),
}  # fmt: skip
IDS = [7, 3, 30, 0, 12, 12, 4, 9, 21, 5, 18, 2, 29]


def random_model(architecture: Architecture) -> Transformer:
    model = Transformer(architecture).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    return model


def through(model: Transformer, ids: list[int], visible: Tensor) -> Tensor:
    """One forward with who sees whom written out."""
    pool, at = model.new_pool(len(ids)), torch.arange(len(ids))
    attend = explicit(model.architecture, pool, visible, at)
    rows = Rows(torch.tensor(ids), at, torch.zeros(len(ids), dtype=torch.bool), at, attend)
    return model.logits(model(rows, pool))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("block", [1, 4, 64])
def test_every_shape_equals_the_plain_text_of_it(name: str, block: int) -> None:
    a = SHAPES[name]
    model = random_model(a)
    at = torch.arange(len(IDS))
    visible = at[:, None] // block >= at[None] // block
    wanted = plain.logits(base_tensors(model), a, IDS, visible)
    assert wanted.std() > 0.1
    torch.testing.assert_close(through(model, IDS, visible), wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("span", [1, 4])
def test_pieces_in_scattered_pages_equal_one_forward(name: str, span: int) -> None:
    a = SHAPES[name]
    model = random_model(a)
    at = torch.arange(12)
    wanted = plain.logits(base_tensors(model), a, IDS[:12], at[:, None] // span >= at[None] // span)
    worker = Worker(model, 8, 4, a.vocab_size - 1)
    hidden = []
    model.register_forward_hook(lambda module, given, made: hidden.append(made))
    for start, end in ((0, 4), (4, 12)):
        ids = tuple(IDS[start:end])
        worker.run([Job([6, 1, 3], Pass((Segment(ids, start, start, start, span),)), [])])
    torch.testing.assert_close(model.logits(torch.cat(hidden)), wanted, atol=1e-10, rtol=0)


def test_a_window_counts_positions_not_slots() -> None:
    """A canvas whose slots lie behind its positions, as one that repeats its anchor does."""
    a = SHAPES["windows"]
    model = random_model(a)
    pool = model.new_pool(16)
    # Six clean rows at slots 0..5, then rows at positions 5.. in slots 6..
    positions, slots, ids = [*range(6), *range(5, 10)], list(range(11)), IDS[:11]
    seen = Visibility(
        list(range(11)), [*range(1, 7), *[6] * 5], [*range(6), *[6] * 5], [*range(1, 7), *[11] * 5], 11, 0,
        positions=positions, slots=slots,
    )  # fmt: skip
    plan = LayeredAttention(a.layer_kinds(), a.num_heads, pool).plan([seen], torch.arange(16)[None], 11)
    masked = torch.zeros(11, dtype=torch.bool)
    tensors = [torch.tensor(each) for each in (ids, positions)]
    got = model.logits(model(Rows(*tensors, masked, torch.tensor(slots), plan), pool))
    clean = torch.arange(11) < 6
    visible = torch.where(clean[:, None], torch.ones(11, 11).tril().bool(), torch.tensor(True))
    attend = explicit(a, pool, visible, torch.tensor(positions))
    wanted = model.logits(model(Rows(*tensors, masked, torch.tensor(slots), attend), pool))
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", LINEAR_KINDS)
def test_experts_are_one_product_each_whatever_weights_are_stored_as(kind: str) -> None:
    torch.manual_seed(0)
    layer = ExpertLayer(16, SIGMOID, torch.nn.functional.silu, LINEAR_KINDS[kind])
    for linear in (layer.gate_up, layer.down):
        for part, size in enumerate(linear.part_sizes):
            linear.load_part(part, torch.randn(size, linear.in_size))
    x, counts = torch.randn(9, 16), torch.tensor([2, 0, 3, 0, 0, 1, 3, 0])
    expert = [0, 0, 2, 2, 2, 5, 6, 6, 6]
    wanted = torch.stack(
        [
            torch.cat([layer.gate_up.part_weight(2 * e + p) for p in (0, 1)]) @ row
            for e, row in zip(expert, x, strict=True)
        ]
    )
    torch.testing.assert_close(grouped(layer.gate_up, x, counts), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["gate_up", "apart"])
def test_stacked_experts_are_read_as_those_one_by_one(tmp_path: Path, layout: str) -> None:
    model = random_model(SHAPES["sigmoid"])
    tensors = {name: tensor.clone() for name, tensor in base_tensors(model).items()}
    for index in (1, 2):
        prefix = f"model.layers.{index}.mlp.experts."
        parts = {
            part: torch.stack([tensors.pop(f"{prefix}{e}.{part}_proj.weight") for e in range(8)])
            for part in ("gate", "up", "down")
        }
        if layout == "gate_up":
            parts["gate_up"] = torch.cat([parts.pop("gate"), parts.pop("up")], 1)
        tensors |= {f"{prefix}{part}_proj": tensor.contiguous() for part, tensor in parts.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    with torch.device("meta"):
        other = Transformer(SHAPES["sigmoid"])
    fill(other, TensorFolder(tmp_path), LLAMA, torch.float64, "cpu")
    seen = torch.ones(len(IDS), len(IDS)).tril().bool()
    assert torch.equal(through(other, IDS, seen), through(model, IDS, seen))
