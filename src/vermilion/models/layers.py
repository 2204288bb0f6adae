"""The pieces of the one backbone. Shapes: N rows, H hidden size or heads, J key heads, D head dim."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vermilion.models.families import Architecture
from vermilion.models.linear import AdapterRows, Linear

Turn = tuple[Tensor, Tensor]
"""Cosines and sines of the rows' angles, each [N, 1, size]; the sine's first half is negated."""
KeysValues = tuple[Tensor, Tensor]
"""Keys after RoPE and values, each [N, J, D]."""
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What the rows take from those they see: queries [N, H, D], keys and values [N, J, D] -> [N, H, D]."""


class Norm(nn.Module):
    """RMSNorm over the last dimension (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_NH: Tensor) -> Tensor:
        return F.rms_norm(x_NH, (x_NH.shape[-1],), self.weight, self.eps)


class Rotary:
    """Rotary position embedding, rotate-half layout (arXiv 2104.09864), over a leading share of each head."""

    def __init__(self, head_dim: int, theta: float, fraction: float) -> None:
        self.size = int(head_dim * fraction)
        self.theta = theta

    def at(self, positions_N: Tensor, dtype: torch.dtype) -> Turn:
        """The turn of one forward. Angles are float64, so that far positions keep theirs."""
        pair = torch.arange(0, self.size, 2, dtype=torch.float64, device=positions_N.device)
        angle = positions_N[:, None] * (1.0 / self.theta ** (pair / self.size))
        cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
        return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]


def rotate(x_NHD: Tensor, turn: Turn) -> Tensor:
    """Each row's heads turned by its angles."""
    cos, sin = turn
    size = cos.shape[-1]
    part = x_NHD if size == x_NHD.shape[-1] else x_NHD[..., :size]
    turned = torch.addcmul(part * cos, part.roll(size // 2, -1), sin)
    return turned if part is x_NHD else torch.cat([turned, x_NHD[..., size:]], -1)


class Layer(nn.Module):
    """Pre-norm attention and SwiGLU feed-forward, for serving and training alike: what the rows see, and
    where keys and values are kept, is `attention`'s."""

    def __init__(self, architecture: Architecture, linear: type[Linear]) -> None:
        super().__init__()
        a = architecture
        self.num_heads, self.num_keys, self.head_dim = a.num_heads, a.num_kv_heads, a.head_dim
        self.attention_norm = Norm(a.hidden_size, a.norm_eps)
        sizes = (a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim, a.num_kv_heads * a.head_dim)
        self.qkv = linear(a.hidden_size, sizes, bias=a.qkv_bias)
        self.q_norm = Norm(a.head_dim, a.norm_eps) if a.qk_norm else None
        self.k_norm = Norm(a.head_dim, a.norm_eps) if a.qk_norm else None
        self.output = linear(a.num_heads * a.head_dim, (a.hidden_size,))
        self.ffn_norm = Norm(a.hidden_size, a.norm_eps)
        self.gate_up = linear(a.hidden_size, (a.ffn_size, a.ffn_size))
        self.down = linear(a.ffn_size, (a.hidden_size,))

    def forward(
        self, x_NH: Tensor, adapters: Sequence[AdapterRows], turn: Turn, attention: Attention
    ) -> tuple[Tensor, KeysValues]:
        """The rows' next hidden states, and their keys and values."""
        num_heads, num_keys = self.num_heads, self.num_keys
        qkv = self.qkv(self.attention_norm(x_NH), adapters)
        heads = qkv.unflatten(-1, (num_heads + 2 * num_keys, self.head_dim))
        # Split, not sliced: the gradient of a slice is a whole tensor of zeros.
        qk, v = torch.split(heads, [num_heads + num_keys, num_keys], 1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = torch.split(qk, [num_heads, num_keys], 1)
            qk = torch.cat([self.q_norm(q), self.k_norm(k)], 1)
        q, k = torch.split(rotate(qk, turn), [num_heads, num_keys], 1)
        x_NH = x_NH + self.output(attention(q, k, v).flatten(1), adapters)
        gate, up = self.gate_up(self.ffn_norm(x_NH), adapters).chunk(2, -1)
        return x_NH + self.down(F.silu(gate) * up, adapters), (k, v)
