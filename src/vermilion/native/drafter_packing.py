"""Packs a drafter: its matrices in eight bits, its head as the base's rows of its vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vermilion.models.families import LLAMA, Architecture
from vermilion.native.checkpoint_packing import NORMS
from vermilion.native.diffusion_packing import Take
from vermilion.native.packed_file import PackWriter, Weight
from vermilion.native.stored_sizes import Axis, heads, product_axes, run

if TYPE_CHECKING:
    from torch import Tensor

    from vermilion.models.drafter import Drafter


def pack_drafter(writer: PackWriter, architecture: Architecture, drafter: Drafter, take: Take) -> None:
    """`take` gives a tensor of the base by Hugging Face's name."""
    hidden = run(architecture.hidden_size)

    def matrix(name: str, weight: Tensor, outputs: Axis, inputs: Axis) -> None:
        writer.matrix(f"drafter.{name}", Weight.of(weight.numpy()), 8, outputs, inputs)

    def numbers(name: str, values: Tensor | None, axis: Axis) -> None:
        if values is not None:
            writer.numbers(f"drafter.{name}", axis.fill(values.numpy(), 0))

    _pack_head(writer, drafter, take, hidden)
    taps = drafter.shape.taps
    writer.numbers("drafter.taps", np.array(taps, np.int32))
    writer.numbers("drafter.layers", np.arange(drafter.shape.num_layers, dtype=np.int32))
    matrix("inject", drafter.inject.part_weight(0), hidden, Axis(hidden.size, hidden.total, len(taps)))
    for index, layer in enumerate(drafter.plain_layers):
        writer.numbers(f"drafter.{index}.window", np.array([layer.kind.window], np.float32))
        for product, parts in LLAMA.products.items():
            linear = getattr(layer, product)
            outputs, inputs = product_axes(architecture, layer.kind, product)
            biases = len(parts) * [None] if linear.bias is None else linear.bias.split(linear.part_sizes)
            for part in range(len(parts)):
                matrix(f"{index}.{product}.{part}", linear.part_weight(part), outputs[part], inputs)
                numbers(f"{index}.{product}.bias.{part}", biases[part], outputs[part])
        for ours, theirs in NORMS.items():
            norm, axis = getattr(layer, theirs), hidden
            if theirs in ("q_norm", "k_norm"):
                axis = heads(1, layer.head_dim)
            numbers(f"{index}.{ours}", None if norm is None else norm.weight, axis)
    numbers("inject_norm", drafter.inject_norm.weight, hidden)
    numbers("norm", drafter.norm.weight, hidden)
    numbers("mask_embedding", drafter.mask_embedding, hidden)
    rank = run(drafter.shape.rank)
    matrix("down", drafter.head.down.part_weight(0), rank, Axis(hidden.size, hidden.total, 2))
    matrix("up", drafter.head.up.part_weight(0), hidden, rank)


def _pack_head(writer: PackWriter, drafter: Drafter, take: Take, hidden: Axis) -> None:
    vocabulary = drafter.vocabulary_W.numpy()
    whole = take("lm_head.weight") or take("model.embed_tokens.weight")
    assert whole is not None
    rows = whole.read(0, whole.shape[0])[vocabulary]
    outputs = Axis(len(vocabulary), -(-len(vocabulary) // 16) * 16)
    writer.matrix("drafter.head", Weight.of(rows, whole.kind, whole.shape[1]), 8, outputs, hidden)
    writer.numbers("drafter.vocabulary", vocabulary.astype(np.int32))
