"""Adapters that a request may name: LoRA over the whole model, for clean and noisy rows alike.

They lie on disk as PEFT writes them, on any of the seven projections, each adapter with a rank of its own. A
model holds any number of them; which rows of a forward go through which is said in `Rows.adapters`. They add
to the base, beside the denoiser's own adapter that noisy rows have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vermilion.models import weights
from vermilion.models.layers import GatedLinear, Lora
from vermilion.models.transformer import PARTS, Transformer


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter, fused as the backbone's products are."""

    layers: Sequence[Mapping[str, Lora]]
    """Per layer: fused product's name to what it adds there; products it leaves alone are missing."""


def read(folder: Path, model: Transformer) -> Adapter:
    """A PEFT LoRA folder, in the model's dtype and on its device.

    Raises ModelFileError, naming the tensor, where it does not fit the model.
    """
    like = model.norm.weight
    pairs, scale = weights.load_adapter(folder, model.architecture, like.dtype, like.device)
    layers = []
    for index, layer in enumerate(model.layers):
        fused = {}
        for name, parts in PARTS.items():
            found = [pairs.get(f"model.layers.{index}.{part}") for part in parts]
            if any(pair is not None for pair in found):
                fused[name] = _fused(getattr(layer, name), found, scale)
        layers.append(fused)
    return Adapter(layers)


def attach(model: Transformer, name: str, adapter: Adapter) -> None:
    """Make `adapter` known to the model's products as `name`."""
    for layer, fused in zip(model.layers, adapter.layers, strict=True):
        for product, lora in fused.items():
            getattr(layer, product).added[name] = lora


def detach(model: Transformer, name: str) -> None:
    """Forget an adapter; rows may no longer name it."""
    for layer in model.layers:
        for product in PARTS:
            getattr(layer, product).added.pop(name, None)


def _fused(linear: GatedLinear, found: Sequence[tuple[Tensor, Tensor] | None], scale: float) -> Lora:
    """The parts' pairs as one: A side by side, B block-diagonal, so that two products do for all parts."""
    a_RI = torch.cat([pair[0] for pair in found if pair is not None])
    b_OR = a_RI.new_zeros(sum(linear.part_sizes), a_RI.shape[0])
    row = column = 0
    for size, pair in zip(linear.part_sizes, found, strict=True):
        if pair is not None:
            rank = pair[1].shape[1]
            b_OR[row : row + size, column : column + rank] = pair[1] * scale
            column += rank
        row += size
    return Lora(a_RI, b_OR)
