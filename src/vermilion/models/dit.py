"""The diffusion transformer of MDLM and BD3-LM (arXiv 2212.09748): norms shifted and scaled by a condition.

The published models are not told the time, so the condition is that of time 0. Shapes: N rows, H hidden size,
C condition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vermilion.models.families import Architecture, LayerKind
from vermilion.models.layers import Attention, KeysValues, Layer
from vermilion.models.linear import AdapterRows, Linear
from vermilion.models.neighbours import Neighbours
from vermilion.models.rotary import Turn

_FREQUENCIES = 128


class Condition(nn.Module):
    """What all norms are told: time 0, embedded."""

    def __init__(self, size: int, linear: type[Linear]) -> None:
        super().__init__()
        self.first = linear(2 * _FREQUENCIES, (size,), bias=True)
        self.second = linear(size, (size,), bias=True)

    def forward(self, like: Tensor) -> Tensor:
        """[1, C] in the dtype and on the device of `like`."""
        # Cosines and sines of an angle of nothing.
        angles = torch.cat([like.new_ones(1, _FREQUENCIES), like.new_zeros(1, _FREQUENCIES)], -1)
        return F.silu(self.second(F.silu(self.first(angles))))


class LayerNorm(nn.Module):
    """With a weight and no bias."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x_NH: Tensor) -> Tensor:
        return F.layer_norm(x_NH, (x_NH.shape[-1],), self.weight)


class FinalNorm(LayerNorm):
    """The norm before the head, which the condition shifts and scales."""

    def __init__(self, size: int, condition: Condition, linear: type[Linear]) -> None:
        super().__init__(size)
        self.condition = condition
        self.modulation = linear(condition.second.out_size, (2 * size,), bias=True)

    def forward(self, x_NH: Tensor) -> Tensor:
        shift, scale = self.modulation(self.condition(x_NH)).chunk(2, -1)
        made: Tensor = super().forward(x_NH) * (1 + scale) + shift
        return made


class DiTLayer(Layer):
    """Attention and a feed-forward without a gate, each between a modulated norm and a gate of its own."""

    def __init__(
        self, architecture: Architecture, kind: LayerKind, linear: type[Linear], condition: Condition
    ) -> None:
        super().__init__(architecture, kind, linear)
        size = architecture.hidden_size
        self.condition = condition
        self.attention_norm = LayerNorm(size)  # type: ignore[assignment]
        self.ffn_norm = LayerNorm(size)  # type: ignore[assignment]
        self.gate_up = None
        self.up = linear(size, (architecture.ffn_size,), bias=architecture.ffn_bias)
        self.modulation = linear(condition.second.out_size, (6 * size,), bias=True)

    def forward(
        self,
        x_NH: Tensor,
        adapters: Sequence[AdapterRows],
        turn: Turn | None,
        attention: Attention,
        neighbours: Neighbours | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """The rows' next hidden states, and their keys and values."""
        told = self.modulation(self.condition(x_NH)).chunk(6, -1)
        q, k, v = self._heads(self.attention_norm(x_NH) * (1 + told[1]) + told[0], adapters, turn)
        x_NH = x_NH + told[2] * self.output(attention(q, k, v).flatten(1), adapters)
        assert self.down is not None
        inner = self.activation(self.up(self.ffn_norm(x_NH) * (1 + told[4]) + told[3], adapters))
        return x_NH + told[5] * self.down(inner, adapters), (k, v)
