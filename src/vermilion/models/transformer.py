"""The one backbone: every family is this, with other numbers and other visibility.

A forward takes rows, not sequences: clean rows (prompt and committed text, on the base) first, noisy rows
(the canvases, on base + adapter where the model is gated) behind them, of any mix of requests. Keys and
values go through an explicit pool. Shapes: N rows, H hidden, S slots, J key heads, D head dim, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vermilion.models.attention import Group, attend
from vermilion.models.draft_head import DraftHead
from vermilion.models.families import Architecture
from vermilion.models.layers import GatedLinear, Norm, Rotary
from vermilion.models.linear import AdapterRows
from vermilion.models.product import product


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
    adapters: Sequence[AdapterRows] = ()
    """Which rows go through which adapter of the model; a row through one at most."""


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

    def forward(
        self, x_NH: Tensor, rows: Rows, rotary: Rotary, turn: tuple[Tensor, Tensor], pool: Tensor
    ) -> Tensor:
        """`turn` is the rotary's cos and sin; `pool` [S, 2, J, D] takes this layer's keys and values."""
        qkv = self.qkv(self.attention_norm(x_NH), rows.num_clean, rows.adapters)
        heads = qkv.unflatten(-1, (self.num_heads + 2 * self.num_keys, self.head_dim))
        qk, v = heads[:, : self.num_heads + self.num_keys], heads[:, self.num_heads + self.num_keys :]
        if self.q_norm is not None and self.k_norm is not None:
            qk = torch.cat([self.q_norm(qk[:, : self.num_heads]), self.k_norm(qk[:, self.num_heads :])], 1)
        qk = rotary.rotate(qk, *turn)
        pool.index_copy_(0, rows.slots_N, torch.stack([qk[:, self.num_heads :], v], 1))
        seen = attend(qk[:, : self.num_heads], pool, rows.groups)
        x_NH = x_NH + self.output(seen.flatten(1), rows.num_clean, rows.adapters)
        gate_up = self.gate_up(self.ffn_norm(x_NH), rows.num_clean, rows.adapters)
        inner = F.silu(gate_up[:, : self.ffn_size]) * gate_up[:, self.ffn_size :]
        x_NH = x_NH + self.down(inner, rows.num_clean, rows.adapters)
        return x_NH


class Transformer(nn.Module):
    """Decoder-only transformer over rows."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.architecture = a
        self.embedding = nn.Parameter(torch.empty(a.vocab_size, a.hidden_size))
        self.layers = nn.ModuleList(Layer(a) for _ in range(a.num_layers))
        self.norm = Norm(a.hidden_size, a.norm_eps)
        self.head = None if a.tied_embeddings else nn.Parameter(torch.empty(a.vocab_size, a.hidden_size))
        self.rotary = Rotary(a.head_dim, a.rope_theta, a.context_length, a.rope_fraction)
        self.mask_embedding: nn.Parameter | None = None
        self.draft_head: DraftHead | None = None

    def new_pool(self, num_slots: int) -> Tensor:
        """Zeroed keys and values: [layers, S, 2, J, D] in the weights' dtype and device."""
        a, like = self.architecture, self.norm.weight
        shape = (a.num_layers, num_slots, 2, a.num_kv_heads, a.head_dim)
        if like.device.type == "cpu":
            # numpy's zeros come from the system untouched: memory is used as the slots are.
            size = math.prod(shape) * like.element_size()
            return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(like.dtype).view(shape)
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    def forward(self, rows: Rows, pool: Tensor) -> Tensor:
        """Hidden states [N, H] after the last norm; writes every row's key and value into `pool`."""
        x_NH = F.embedding(rows.ids_N, self.embedding)
        if self.mask_embedding is not None:
            x_NH = torch.where(rows.masked_N[:, None], self.mask_embedding, x_NH)
        cos, sin = self.rotary.at(rows.positions_N)
        turn = (cos.to(x_NH.dtype), sin.to(x_NH.dtype))
        for index, layer in enumerate(self.layers):
            x_NH = layer(x_NH, rows, self.rotary, turn, pool[index])
        hidden_NH: Tensor = self.norm(x_NH)
        return hidden_NH

    @property
    def output_VH(self) -> Tensor:
        """What hidden states are compared with: the head, or the embedding where they are tied."""
        return self.embedding if self.head is None else self.head

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """[R, V] in the weights' dtype."""
        return product(hidden_RH, self.output_VH)


PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""The projections, by Hugging Face's names, that each fused product of a layer holds, in order."""
NORMS = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
"""The norms of a layer, ours to Hugging Face's."""


def load_tensors(model: Transformer, tensors: MutableMapping[str, Tensor]) -> None:
    """Fill `model` from tensors under Hugging Face's Llama names, fusing what the backbone fuses.

    Takes the tensors out of the mapping as it goes, so that the weights are in memory only once.
    """
    with torch.no_grad():
        _place(model, "embedding", tensors.pop("model.embed_tokens.weight"))
        _place(model.norm, "weight", tensors.pop("model.norm.weight"))
        if model.head is not None:
            _place(model, "head", tensors.pop("lm_head.weight"))
        for index, layer in enumerate(model.layers):
            prefix = f"model.layers.{index}."
            for fused, parts in PARTS.items():
                linear = getattr(layer, fused)
                _place(linear, "weight", _fused(tensors, prefix, parts, "weight"))
                if linear.bias is not None:
                    _place(linear, "bias", _fused(tensors, prefix, parts, "bias"))
            for ours, theirs in NORMS.items():
                norm = getattr(layer, ours)
                if norm is not None:
                    _place(norm, "weight", tensors.pop(f"{prefix}{theirs}.weight"))


def load_adapter(
    model: Transformer,
    adapter: Mapping[str, tuple[Tensor, Tensor]],
    scale: float,
    mask_embedding: Tensor | None,
) -> None:
    """Attach (A, B) pairs by module name (`model.layers.0.self_attn.q_proj`) and the mask embedding."""
    for index, layer in enumerate(model.layers):
        for fused, parts in PARTS.items():
            pairs = [adapter[f"model.layers.{index}.{part}"] for part in parts]
            getattr(layer, fused).adapt(pairs, scale)
    if mask_embedding is not None:
        model.mask_embedding = nn.Parameter(mask_embedding.to(model.norm.weight))


def load_noisy(
    model: Transformer, tensors: MutableMapping[str, Tensor], mask_embedding: Tensor | None
) -> None:
    """Give noisy rows projections of their own, from tensors under the names of the base's."""
    for index, layer in enumerate(model.layers):
        for fused, parts in PARTS.items():
            weight = _fused(tensors, f"model.layers.{index}.", parts, "weight")
            getattr(layer, fused).noisy_weight = nn.Parameter(weight, requires_grad=False)
    if mask_embedding is not None:
        model.mask_embedding = nn.Parameter(mask_embedding.to(model.norm.weight))


def _fused(tensors: MutableMapping[str, Tensor], prefix: str, parts: Sequence[str], kind: str) -> Tensor:
    found = [tensors.pop(f"{prefix}{part}.{kind}") for part in parts]
    first = found[0]
    ends = [part.storage_offset() + part.numel() for part in found]
    adjacent = all(
        part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and part.is_contiguous()
        and part.storage_offset() == end
        for part, end in zip(found[1:], ends, strict=False)
    )
    if not adjacent:
        return torch.cat(found)
    # The loader laid them side by side; with one part this is the part itself.
    size = (sum(part.shape[0] for part in found), *first.shape[1:])
    return first.as_strided(size, first.stride(), first.storage_offset())


def _place(module: nn.Module, name: str, value: Tensor) -> None:
    # The parameter is replaced, not copied into: the tensors may be the only copy that fits in memory.
    old = getattr(module, name)
    if old.shape != value.shape:
        raise ValueError(
            f"{type(module).__name__}.{name} is {tuple(old.shape)}, the checkpoint {tuple(value.shape)}"
        )
    setattr(module, name, nn.Parameter(value, requires_grad=False))
