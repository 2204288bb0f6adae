"""The backbone over whole rows of text, with gradients: what the pool-based forward computes, for training.

Two passes (`clean`, then `noisy` over its keys and values) or one over both streams (`joint`); both give the
same numbers. Shapes: B rows, L positions, N = streams x B x L rows of a product, H hidden, J key heads,
D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vermilion.models.layers import Rotary
from vermilion.models.transformer import Layer, Transformer

KeysValues = tuple[Tensor, Tensor]
"""Keys and values after RoPE, each [B, J, L, D]."""


@dataclass(frozen=True, slots=True)
class Forward:
    """A model with how its layers are to be run."""

    model: Transformer
    recompute: bool = False
    """Drop a noisy layer's activations and compute them again in the backward pass."""
    compiled: bool = False
    _layer: list[object] = field(default_factory=list, init=False, repr=False)

    def clean(self, ids_BL: Tensor, position_BL: Tensor, mask_BLL: Tensor) -> tuple[Tensor, list[KeysValues]]:
        """Hidden states [B, L, H] of the clean stream after the last norm, and every layer's `KeysValues`."""
        rows = _Rows(self.model, position_BL, ids_BL.numel(), mask_BLL)
        x_NH = F.embedding(ids_BL.reshape(-1), self.model.embedding)
        stored = []
        for layer in self.model.layers:
            x_NH, keys_values = rows.run(layer, x_NH, None)
            stored.append(keys_values)
        return self.model.norm(x_NH).unflatten(0, ids_BL.shape), stored

    def noisy(
        self,
        ids_BL: Tensor,
        masked_BL: Tensor,
        position_BL: Tensor,
        mask_BL2L: Tensor,
        past: Sequence[KeysValues],
    ) -> Tensor:
        """Hidden states [B, L, H] of the noisy stream over `past`, the clean stream's keys and values."""
        rows = _Rows(self.model, position_BL, 0, mask_BL2L)
        x_NH = _embed(self.model, ids_BL.reshape(-1), masked_BL.reshape(-1))
        for layer, before in zip(self.model.layers, past, strict=True):
            if self.recompute and torch.is_grad_enabled():
                x_NH, _ = checkpoint(rows.run, layer, x_NH, before, use_reentrant=False)
            else:
                x_NH, _ = rows.run(layer, x_NH, before)
        return self.model.norm(x_NH).unflatten(0, ids_BL.shape)
