"""A layer with Canon convolutions (SSRN 5240330): depthwise over the positions before each row, added to what
goes in. Shapes: N rows, H hidden size, C channels, K positions before a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vermilion.models.families import Architecture, LayerKind
from vermilion.models.layers import Attention, KeysValues, Layer
from vermilion.models.linear import AdapterRows, Linear
from vermilion.models.neighbours import Before, Neighbours
from vermilion.models.rotary import Turn, turn_by


class Convolution(nn.Module):
    """Causal and depthwise; the input is added to it."""

    def __init__(self, channels: int, kernel: int, at: int) -> None:
        """`at`: where a slot keeps its inputs."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, kernel))
        self.at = at

    def forward(self, x_NC: Tensor, before: Before) -> Tensor:
        window_NKC = torch.cat([before(x_NC, self.at), x_NC[:, None]], 1)
        made_NC: Tensor = x_NC + (window_NKC * self.weight[:, 0].t()).sum(1)
        return made_NC


class CanonLayer(Layer):
    """Convolutions before the projections (A), behind those of queries, keys and values (B), before the
    feed-forward (C) and inside of it (D). The angles of RoPE are the checkpoint's own."""

    def __init__(self, architecture: Architecture, kind: LayerKind, linear: type[Linear]) -> None:
        super().__init__(architecture, kind, linear)
        channels = architecture.convolutions().values()
        self.canon_a, self.canon_b, self.canon_c, self.canon_d = (
            Convolution(count, architecture.canon_kernel, end - count)
            for count, end in zip(channels, itertools.accumulate(channels), strict=True)
        )
        self.inverse_frequencies = nn.Parameter(torch.ones(kind.head_dim // 2))

    def forward(
        self,
        x_NH: Tensor,
        adapters: Sequence[AdapterRows],
        turn: Turn | None,
        attention: Attention,
        neighbours: Neighbours | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """The rows' next hidden states, and their keys and values; `turn` is not used."""
        assert neighbours is not None and neighbours.before is not None
        assert self.gate_up is not None and self.down is not None
        before = neighbours.before
        own = turn_by(self.inverse_frequencies.double(), neighbours.positions_N, x_NH.dtype)
        normed = self.canon_a(self.attention_norm(x_NH), before)
        q, k, v = self._split(self.canon_b(self.qkv(normed, adapters), before), own)
        x_NH = x_NH + self.output(attention(q, k, v).flatten(1), adapters)
        gate, up = self.gate_up(self.canon_c(self.ffn_norm(x_NH), before), adapters).chunk(2, -1)
        inner = self.canon_d(self.activation(gate) * up, before)
        made_NH: Tensor = self.down(inner, adapters)
        return x_NH + made_NH, (k, v)
