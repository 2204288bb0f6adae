"""The one backbone: every family is this, with other numbers and other visibility.

A forward takes rows, not sequences: clean rows (prompt and committed text, on the base) first, noisy rows
(the canvases, on base + adapter where the model is gated) behind them, of any mix of requests. Keys and
values go through an explicit pool. Shapes: N rows, H hidden, S slots, J key heads, D head dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vermilion.models.attention import Group, attend
from vermilion.models.families import Architecture
from vermilion.models.layers import GatedLinear, Norm, Rotary


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one forward."""

    ids_N: Tensor
    positions_N: Tensor
    masked_N: Tensor
    """bool: rows that carry the mask embedding."""
    num_clean: int
    slots_N: Tensor
    """Pool slot that takes each row's key and value."""
    groups: Sequence[Group]


class Layer(nn.Module):
    """Pre-norm attention and SwiGLU feed-forward."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.num_heads, self.num_keys, self.head_dim = a.num_heads, a.num_kv_heads, a.head_dim
        self.attention_norm = Norm(a.hidden_size, a.norm_eps)
        sizes = (a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim, a.num_kv_heads * a.head_dim)
        self.qkv = GatedLinear(a.hidden_size, sizes, bias=a.qkv_bias)
        self.q_norm = Norm(a.head_dim, a.norm_eps) if a.qk_norm else None
        self.k_norm = Norm(a.head_dim, a.norm_eps) if a.qk_norm else None
        self.output = GatedLinear(a.num_heads * a.head_dim, (a.hidden_size,))
        self.ffn_norm = Norm(a.hidden_size, a.norm_eps)
        self.gate_up = GatedLinear(a.hidden_size, (a.ffn_size, a.ffn_size))
        self.down = GatedLinear(a.ffn_size, (a.hidden_size,))
        self.ffn_size = a.ffn_size

    def forward(self, x_NH: Tensor, rows: Rows, rotary: Rotary, turn: tuple[Tensor, Tensor], pool: Tensor) -> Tensor:
        """`turn` is the rotary's cos and sin; `pool` [S, 2, J, D] takes this layer's keys and values."""
        qkv = self.qkv(self.attention_norm(x_NH), rows.num_clean)
        heads = qkv.unflatten(-1, (self.num_heads + 2 * self.num_keys, self.head_dim))
        qk, v = heads[:, : self.num_heads + self.num_keys], heads[:, self.num_heads + self.num_keys :]
        if self.q_norm is not None and self.k_norm is not None:
            qk = torch.cat([self.q_norm(qk[:, : self.num_heads]), self.k_norm(qk[:, self.num_heads :])], 1)
        qk = rotary.rotate(qk, *turn)
        pool.index_copy_(0, rows.slots_N, torch.stack([qk[:, self.num_heads :], v], 1))
        seen = attend(qk[:, : self.num_heads], pool, rows.groups)
        x_NH = x_NH + self.output(seen.flatten(1), rows.num_clean)
        gate_up = self.gate_up(self.ffn_norm(x_NH), rows.num_clean)
        inner = F.silu(gate_up[:, : self.ffn_size]) * gate_up[:, self.ffn_size :]
        return x_NH + self.down(inner, rows.num_clean)


class Transformer(nn.Module):
    """Decoder-only transformer over rows."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.architecture = a
        self.embedding = nn.Embedding(a.vocab_size, a.hidden_size)
        self.layers = nn.ModuleList(Layer(a) for _ in range(a.num_layers))
        self.norm = Norm(a.hidden_size, a.norm_eps)
        self.head = None if a.tied_embeddings else nn.Linear(a.hidden_size, a.vocab_size, bias=False)
        self.rotary = Rotary(a.head_dim, a.rope_theta, a.context_length, a.rope_fraction)
        self.mask_embedding: nn.Parameter | None = None

    def new_pool(self, num_slots: int) -> Tensor:
        """Zeroed keys and values: [layers, S, 2, J, D] in the weights' dtype and device."""
        a = self.architecture
        shape = (a.num_layers, num_slots, 2, a.num_kv_heads, a.head_dim)
        return torch.zeros(shape, dtype=self.norm.weight.dtype, device=self.norm.weight.device)

    def forward(self, rows: Rows, pool: Tensor) -> Tensor:
        """Hidden states [N, H] after the last norm; writes every row's key and value into `pool`."""
        x_NH = self.embedding(rows.ids_N)
        if self.mask_embedding is not None:
            x_NH = torch.where(rows.masked_N[:, None], self.mask_embedding, x_NH)
        cos, sin = self.rotary.at(rows.positions_N)
        turn = (cos.to(x_NH.dtype), sin.to(x_NH.dtype))
        for index, layer in enumerate(self.layers):
            x_NH = layer(x_NH, rows, self.rotary, turn, pool[index])
        return self.norm(x_NH)

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """[R, V] in the weights' dtype."""
        return F.linear(hidden_RH, self.embedding.weight if self.head is None else self.head.weight)


_PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
_NORMS = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}


def load_tensors(model: Transformer, tensors: Mapping[str, Tensor]) -> None:
    """Fill `model` from tensors under Hugging Face's Llama names, fusing what the backbone fuses."""
    with torch.no_grad():
        _place(model.embedding, "weight", tensors["model.embed_tokens.weight"])
        _place(model.norm, "weight", tensors["model.norm.weight"])
        if model.head is not None:
            _place(model.head, "weight", tensors["lm_head.weight"])
        for index, layer in enumerate(model.layers):
            prefix = f"model.layers.{index}."
            for fused, parts in _PARTS.items():
                linear = getattr(layer, fused)
                _place(linear, "weight", torch.cat([tensors[f"{prefix}{part}.weight"] for part in parts]))
                if linear.bias is not None:
                    _place(linear, "bias", torch.cat([tensors[f"{prefix}{part}.bias"] for part in parts]))
            for ours, theirs in _NORMS.items():
                norm = getattr(layer, ours)
                if norm is not None:
                    _place(norm, "weight", tensors[f"{prefix}{theirs}.weight"])


def load_adapter(
    model: Transformer,
    adapter: Mapping[str, tuple[Tensor, Tensor]],
    scale: float,
    mask_embedding: Tensor | None,
) -> None:
    """Attach (A, B) pairs by module name (`model.layers.0.self_attn.q_proj`) and the mask embedding."""
    for index, layer in enumerate(model.layers):
        for fused, parts in _PARTS.items():
            pairs = [adapter[f"model.layers.{index}.{part}"] for part in parts]
            getattr(layer, fused).adapt(pairs, scale)
    if mask_embedding is not None:
        model.mask_embedding = nn.Parameter(mask_embedding.to(model.norm.weight))


def _place(module: nn.Module, name: str, value: Tensor) -> None:
    # The parameter is replaced, not copied into: the tensors may be the only copy that fits in memory.
    old = getattr(module, name)
    if old.shape != value.shape:
        raise ValueError(f"{type(module).__name__}.{name} is {tuple(old.shape)}, the checkpoint {tuple(value.shape)}")
    setattr(module, name, nn.Parameter(value, requires_grad=False))
