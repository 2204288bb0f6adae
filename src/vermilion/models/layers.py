"""The pieces of the one backbone. Shapes: N rows, H hidden size or heads, J key heads, D head dim."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vermilion.models.experts import Activation, ExpertLayer
from vermilion.models.families import Architecture, LayerKind
from vermilion.models.linear import AdapterRows, Linear
from vermilion.models.neighbours import Neighbours
from vermilion.models.rotary import Turn, rotate

KeysValues = tuple[Tensor, Tensor]
"""Keys after RoPE and values, each [N, J, D]."""
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What the rows take from those they see: queries [N, H, D], keys and values [N, J, D] -> [N, H, D].
Scores are multiplied by 1 / sqrt(D)."""

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class Norm(nn.Module):
    """RMSNorm over the last dimension (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_NH: Tensor) -> Tensor:
        return F.rms_norm(x_NH, (x_NH.shape[-1],), self.weight, self.eps)


class Layer(nn.Module):
    """Pre-norm attention and gated feed-forward, dense or of experts, for serving and training alike: what
    the rows see, and where keys and values are kept, is `attention`'s."""

    def __init__(self, architecture: Architecture, kind: LayerKind, linear: type[Linear]) -> None:
        """`kind`: with its sizes filled in."""
        super().__init__()
        a = architecture
        self.kind, self.norm_eps = kind, a.norm_eps
        self.num_heads, self.num_keys, self.head_dim = a.num_heads, kind.num_kv_heads, kind.head_dim
        wide, narrow = a.num_heads * kind.head_dim, kind.num_kv_heads * kind.head_dim
        self.attention_norm = Norm(a.hidden_size, a.norm_eps)
        sizes = (wide, narrow) if kind.values_are_keys else (wide, narrow, narrow)
        self.qkv = linear(a.hidden_size, sizes, bias=a.qkv_bias)
        joint = a.joint_qk_norm
        self.q_norm = Norm(wide if joint else kind.head_dim, a.norm_eps) if a.qk_norm else None
        self.k_norm = Norm(narrow if joint else kind.head_dim, a.norm_eps) if a.qk_norm else None
        self.late_qk_norm, self.value_norm = a.late_qk_norm, a.value_norm
        self.gate = linear(a.hidden_size, (wide,)) if a.attention_gate else None
        # The attention divides by sqrt(D) itself.
        self.query_scale = a.attention_scale * math.sqrt(kind.head_dim) if a.attention_scale else 1.0
        self.output = linear(wide, (a.hidden_size,), bias=a.output_bias)
        self.ffn_norm = Norm(a.hidden_size, a.norm_eps)
        self.activation = ACTIVATIONS[a.activation]
        ffn = (a.ffn_size, a.ffn_size)
        self.gate_up = linear(a.hidden_size, ffn, bias=a.ffn_bias) if kind.dense else None
        self.down = linear(a.ffn_size, (a.hidden_size,), bias=a.ffn_bias) if kind.dense else None
        self.experts = (
            ExpertLayer(a.hidden_size, kind.experts, self.activation, linear, a.norm_eps)
            if kind.experts
            else None
        )

    def forward(
        self,
        x_NH: Tensor,
        adapters: Sequence[AdapterRows],
        turn: Turn | None,
        attention: Attention,
        neighbours: Neighbours | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """The rows' next hidden states, and their keys and values."""
        normed_NH = self.attention_norm(x_NH)
        q, k, v = self._heads(normed_NH, adapters, turn)
        seen = attention(q, k, v).flatten(1)
        if self.gate is not None:
            seen = seen * self.gate(normed_NH, adapters).sigmoid()
        x_NH = x_NH + self.output(seen, adapters)
        return x_NH + self._feed_forward(self.ffn_norm(x_NH), adapters, neighbours), (k, v)

    def _heads(
        self, x_NH: Tensor, adapters: Sequence[AdapterRows], turn: Turn | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys after their norms and RoPE, and values."""
        return self._split(self.qkv(x_NH, adapters), turn)

    def _split(self, qkv: Tensor, turn: Turn | None) -> tuple[Tensor, Tensor, Tensor]:
        num_heads, num_keys = self.num_heads, self.num_keys
        heads = qkv.view(len(qkv), -1, self.head_dim)
        # Split, not sliced: the gradient of a slice is a whole tensor of zeros.
        if self.kind.values_are_keys:
            qk, v = heads, heads[:, num_heads:]
        else:
            qk, v = torch.split(heads, [num_heads + num_keys, num_keys], 1)
        if self.value_norm:
            v = F.rms_norm(v, (self.head_dim,), None, self.norm_eps)
        qk = rotate(qk, turn) if self.late_qk_norm else rotate(self._normed(qk), turn)
        q, k = torch.split(self._normed(qk) if self.late_qk_norm else qk, [num_heads, num_keys], 1)
        return (q if self.query_scale == 1.0 else q * self.query_scale), k, v

    def _normed(self, qk: Tensor) -> Tensor:
        if self.q_norm is None or self.k_norm is None:
            return qk
        q, k = torch.split(qk, [self.num_heads, self.num_keys], 1)
        return torch.cat([_over_heads(self.q_norm, q), _over_heads(self.k_norm, k)], 1)

    def _feed_forward(
        self, x_NH: Tensor, adapters: Sequence[AdapterRows], neighbours: Neighbours | None = None
    ) -> Tensor:
        blocks_N = None if neighbours is None else neighbours.blocks_N
        made: Tensor | None = None if self.experts is None else self.experts(x_NH, blocks_N=blocks_N)
        if self.gate_up is None or self.down is None:
            assert made is not None
            return made
        gate, up = self.gate_up(x_NH, adapters).chunk(2, -1)
        dense: Tensor = self.down(self.activation(gate) * up, adapters)
        return dense if made is None else dense + made


def _over_heads(norm: Norm, x_NHD: Tensor) -> Tensor:
    """Head by head, or over all heads of a row where the norm is that wide."""
    together = norm.weight.shape[0] != x_NHD.shape[-1]
    normed: Tensor = norm(x_NHD.flatten(1) if together else x_NHD)
    return normed.view_as(x_NHD)
