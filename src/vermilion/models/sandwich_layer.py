"""Gemma's layer: norms before and behind both halves. Shapes: N rows, H hidden size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vermilion.models.families import Architecture, LayerKind
from vermilion.models.layers import Attention, KeysValues, Layer, Norm
from vermilion.models.linear import NOISY_ROWS, AdapterRows, Linear
from vermilion.models.neighbours import Neighbours
from vermilion.models.rotary import Turn


class SandwichLayer(Layer):
    """A dense feed-forward and experts side by side, which see the same rows through norms of their own."""

    def __init__(self, architecture: Architecture, kind: LayerKind, linear: type[Linear]) -> None:
        super().__init__(architecture, kind, linear)
        size, eps = architecture.hidden_size, architecture.norm_eps
        self.attention_out_norm = Norm(size, eps)
        self.ffn_out_norm = Norm(size, eps)
        both = kind.dense and kind.experts is not None
        self.dense_out_norm = Norm(size, eps) if both else None
        self.expert_norm = Norm(size, eps) if both else None
        self.expert_out_norm = Norm(size, eps) if both else None
        self.scale = nn.Parameter(torch.ones(1))
        self.noisy_scale = nn.Parameter(torch.ones(1))

    def forward(
        self,
        x_NH: Tensor,
        adapters: Sequence[AdapterRows],
        turn: Turn | None,
        attention: Attention,
        neighbours: Neighbours | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """The rows' next hidden states, and their keys and values."""
        q, k, v = self._heads(self.attention_norm(x_NH), adapters, turn)
        x_NH = x_NH + self.attention_out_norm(self.output(attention(q, k, v).flatten(1), adapters))
        x_NH = x_NH + self.ffn_out_norm(self._both(x_NH, adapters))
        return x_NH * self._scales(len(x_NH), adapters), (k, v)

    def _both(self, x_NH: Tensor, adapters: Sequence[AdapterRows]) -> Tensor:
        if self.dense_out_norm is None or self.expert_norm is None or self.expert_out_norm is None:
            return self._feed_forward(self.ffn_norm(x_NH), adapters)
        assert self.gate_up is not None and self.down is not None and self.experts is not None
        gate, up = self.gate_up(self.ffn_norm(x_NH), adapters).chunk(2, -1)
        dense_NH: Tensor = self.dense_out_norm(self.down(self.activation(gate) * up, adapters))
        made_NH: Tensor = self.expert_out_norm(self.experts(self.expert_norm(x_NH), routed_NH=x_NH))
        return dense_NH + made_NH

    def _scales(self, num_rows: int, adapters: Sequence[AdapterRows]) -> Tensor:
        """[N, 1]: of clean rows and of noisy ones."""
        noisy = next((rows for rows in adapters if rows.name == NOISY_ROWS), None)
        if noisy is None:
            return self.scale
        parts = (noisy.start, noisy.end - noisy.start, num_rows - noisy.end)
        scales = (self.scale, self.noisy_scale, self.scale)
        return torch.cat([scale.expand(count) for scale, count in zip(scales, parts, strict=True)])[:, None]
