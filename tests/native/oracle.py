"""A forward pass in float64 numpy over the packed weights, as plainly as possible, and reading of tiles.

It rounds what the kernels round: inputs of products to eight bits, keys and values to half precision. Sizes
are those that they keep, which fill blocks with zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vermilion.models.families import Architecture, Experts, LayerKind
from vermilion.native.packed_file import Array, PackedFile
from vermilion.native.stored_sizes import dense_size, head_size, run


@dataclass(frozen=True)
class OracleRow:
    id: int
    position: int
    sees: tuple[int, ...]
    """Rows whose keys it attends to."""
    noisy: bool = False
    masked: bool = False
    first: int = -1
    """Position of the first of the rows that all see each other; -1 for a row that sees no later ones."""


def unpacked(packed: PackedFile, name: str) -> Array:
    """float64 [outputs, inputs] of a packed matrix: kernels/model.h has the layout."""
    entry = packed._entries[name]
    bits, outputs, blocks = entry["bits"], entry["outputs"], entry["inputs"] // 32
    num_codes, num_scales = (256, 64) if bits == 4 else (512, 32)
    stride = -(-blocks * (num_codes + num_scales) // 64) * 64
    num_tiles = -(-outputs // 16)
    data = np.asarray(packed._data[entry["offset"] : entry["offset"] + num_tiles * stride]).reshape(
        num_tiles, stride
    )
    codes = data[:, : blocks * num_codes]
    scales = data[:, blocks * num_codes : blocks * (num_codes + num_scales)].copy().view(np.float16)
    if bits == 4:
        pairs = codes.reshape(num_tiles, blocks, 4, 1, 16, 4)
        groups = np.concatenate([pairs & 15, pairs >> 4], 3).reshape(num_tiles, blocks, 8, 16, 4)
        scales = scales.reshape(num_tiles, blocks, 2, 16)
        scale, least = scales[:, :, 0].astype(float), scales[:, :, 1].astype(float)
        values = groups * scale[:, :, None, :, None] + least[:, :, None, :, None]
    else:
        groups = codes.reshape(num_tiles, blocks, 8, 16, 4).astype(float) - 128
        values = groups * scales.reshape(num_tiles, blocks, 16).astype(float)[:, :, None, :, None]
    # [tile, block, group, output, input] to [tile, output, block, group, input]
    return values.transpose(0, 3, 1, 2, 4).reshape(num_tiles * 16, blocks * 32)[:outputs]


def numbers(packed: PackedFile, name: str, size: int) -> Array | None:
    if name not in packed:
        return None
    start = packed._entries[name]["offset"]
    values: Array = packed._data[start : start + 4 * size].view(np.float32).astype(float)
    return values


def rounded(x: Array) -> Array:
    """Blocks of 32 to 255 levels."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scale = np.abs(blocks).max(-1, keepdims=True) / 127
    codes = np.rint(blocks / np.where(scale == 0, 1, scale))
    made: Array = (codes * scale).reshape(x.shape)
    return made


def centred(x: Array, size: int) -> Array:
    """The mean of `size` components taken off; the rest is filling."""
    made: Array = np.where(np.arange(x.shape[-1]) < size, x - x.sum(-1, keepdims=True) / size, 0.0)
    return made


def rms_norm(x: Array, weight: Array | None, eps: float, size: int) -> Array:
    """`size`: components that are no filling."""
    normed: Array = x / np.sqrt((x**2).sum(-1, keepdims=True) / size + eps)
    return normed if weight is None else normed * weight


def activated(kind: str, x: Array) -> Array:
    if kind == "silu":
        return x / (1 + np.exp(-x))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


class Oracle:
    def __init__(self, packed: PackedFile, architecture: Architecture) -> None:
        self.packed, self.a = packed, architecture
        self.hidden = run(architecture.hidden_size).total

    def product(
        self, name: str, part: int, x: Array, rows: Sequence[OracleRow], adapter: PackedFile | None
    ) -> Array:
        weight = unpacked(self.packed, f"{name}.{part}")
        x = rounded(np.pad(x, ((0, 0), (0, weight.shape[1] - x.shape[1]))))
        y = x @ weight.T
        bias = numbers(self.packed, f"{name}.bias.{part}", weight.shape[0])
        if bias is not None:
            y = y + bias
        noisy = np.array([row.noisy for row in rows])
        if f"{name}.denoiser.down" in self.packed:
            y[noisy] += self.low_rank(self.packed, f"{name}.denoiser", part, x[noisy])
        if adapter is not None and f"{name}.up.{part}" in adapter:
            y += self.low_rank(adapter, name, part, x)
        return y

    @staticmethod
    def low_rank(packed: PackedFile, name: str, part: int, x: Array) -> Array:
        up = unpacked(packed, f"{name}.up.{part}")
        rank = up.shape[1]
        down = unpacked(packed, f"{name}.down")[part * rank : (part + 1) * rank]
        return rounded(x @ down.T) @ up.T

    def rotated(self, heads_NHD: Array, positions: Array, kind: LayerKind) -> Array:
        if not kind.rotated:
            return heads_NHD
        rope = self.a.rope(kind)
        angle = positions[:, None] * rope.inverse_frequencies()
        cos, sin = (rope.magnitude * turn(angle)[:, None] for turn in (np.cos, np.sin))
        low, high, rest = np.split(heads_NHD, [rope.size // 2, rope.size], -1)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin, rest], -1)

    def attended(self, q: Array, k: Array, v: Array, rows: Sequence[OracleRow], kind: LayerKind) -> Array:
        group = self.a.num_heads // kind.num_kv_heads
        scale = self.a.attention_scale or 1 / np.sqrt(kind.head_dim)
        out = np.zeros_like(q)
        for i, row in enumerate(rows):
            own = row.position if row.first < 0 else row.first
            seen = [j for j in row.sees if not kind.window or own - rows[j].position < kind.window]
            for head in range(self.a.num_heads):
                keys, values = k[seen, head // group], v[seen, head // group]
                score = keys @ q[i, head] * scale
                weight = np.exp(score - score.max())
                out[i, head] = weight @ values / weight.sum()
        return out

    def heads(
        self, layer: int, kind: LayerKind, x: Array, rows: Sequence[OracleRow], adapter: PackedFile | None
    ) -> list[Array]:
        """Queries, keys and values, [rows, heads, stored size]."""
        a, name, stored = self.a, f"{layer}.qkv", head_size(kind.head_dim)
        parts = [
            self.product(name, part, x, rows, adapter)
            for part in ((0, 1, 1) if kind.values_are_keys else (0, 1, 2))
        ]
        counts = (a.num_heads, kind.num_kv_heads, kind.num_kv_heads)
        q, k, v = (
            part[:, : count * stored].reshape(len(rows), count, stored)
            for part, count in zip(parts, counts, strict=True)
        )
        if a.value_norm:
            v = rms_norm(v, None, a.norm_eps, kind.head_dim)
        if a.late_qk_norm:
            return [q, k, v]
        return [
            self.head_norm(f"{layer}.query_norm", q, kind),
            self.head_norm(f"{layer}.key_norm", k, kind),
            v,
        ]

    def head_norm(self, name: str, each: Array, kind: LayerKind) -> Array:
        count, stored = each.shape[1] if self.a.joint_qk_norm else 1, each.shape[2]
        weight = numbers(self.packed, name, count * stored)
        flat = each.reshape(len(each), -1, count * stored)
        normed = flat if weight is None else rms_norm(flat, weight, self.a.norm_eps, count * kind.head_dim)
        made: Array = normed.reshape(each.shape)
        return made

    def fed_forward(
        self, layer: int, kind: LayerKind, x: Array, rows: Sequence[OracleRow], adapter: PackedFile | None
    ) -> Array:
        a, made, normed = self.a, np.zeros_like(x), self.norm(f"{layer}.ffn_norm", x, f"{layer}.ffn_shift")
        if dense_size(a, kind):
            parts = range(1 if a.condition_size else 2)
            gate, *up = (self.product(f"{layer}.gate_up", part, normed, rows, adapter) for part in parts)
            gated = activated(a.activation, gate) * (up[0] if up else 1)
            made += self.product(f"{layer}.down", 0, gated, rows, adapter)
        if kind.experts is None:
            return made
        name = f"{layer}.experts"
        if f"{layer}.expert_norm" not in self.packed:
            return made + self.mixed(name, kind.experts, normed, normed)
        mixed = self.mixed(name, kind.experts, self.norm(f"{layer}.expert_norm", x), x)
        return self.norm(f"{layer}.dense_out_norm", made) + self.norm(f"{layer}.expert_out_norm", mixed)

    def norm(self, name: str, x: Array, shift: str = "") -> Array:
        """Of hidden states."""
        size, moved = self.a.hidden_size, numbers(self.packed, shift, self.hidden)
        x = centred(x, size) if self.a.condition_size else x
        made = rms_norm(x, numbers(self.packed, name, self.hidden), self.a.norm_eps, size)
        return made if moved is None else made + moved

    def joined(self, half: str, x: Array, made: Array) -> Array:
        if f"{half}_out_norm" in self.packed:
            made = self.norm(f"{half}_out_norm", made)
        gate = numbers(self.packed, f"{half}_gate", self.hidden)
        return x + (made if gate is None else made * gate)

    def conditioned(self, x: Array, signal: Array | None) -> Array:
        if signal is not None:
            told = rounded(self.norm("conditioning.norm", signal))
            gate, up, down = (
                unpacked(self.packed, f"conditioning.{part}") for part in ("gate", "up", "down")
            )
            x = x + rounded(activated(self.a.activation, told @ gate.T) * (told @ up.T)) @ down.T
        return rms_norm(x, None, self.a.norm_eps, self.a.hidden_size)

    def mixed(self, name: str, experts: Experts, x: Array, routed: Array) -> Array:
        e, made = experts, np.zeros_like(x)
        router = numbers(self.packed, f"{name}.router", e.num_experts * self.hidden)
        assert router is not None
        if e.scaled_router:
            routed = rms_norm(routed, None, self.a.norm_eps, self.a.hidden_size)
        expert_scale = numbers(self.packed, f"{name}.expert_scale", e.num_experts)
        scores = routed @ router.reshape(e.num_experts, -1).T
        raised = np.exp(scores - scores.max(1, keepdims=True))
        shares = 1 / (1 + np.exp(-scores)) if e.router == "sigmoid" else raised / raised.sum(1, keepdims=True)
        bias = numbers(self.packed, f"{name}.router_bias", e.num_experts)
        for row, share in enumerate(shares):
            ranks = share + (0 if bias is None else bias)
            groups = ranks.reshape(e.num_groups, -1)
            open_groups = np.argsort(-np.sort(groups, 1)[:, -2:].sum(1))[: e.num_active_groups]
            closed = [group for group in range(e.num_groups) if group not in open_groups]
            if closed:
                groups[closed] = -np.inf
            chosen = np.argsort(-groups.reshape(-1))[: e.num_active]
            weights = share[chosen] / (share[chosen].sum() if e.normalized else 1) * e.scale
            weights = weights if expert_scale is None else weights * expert_scale[chosen]
            for expert, weight in zip(chosen, weights, strict=True):
                gate, up, down = (
                    unpacked(self.packed, f"{name}.{part}.{expert}") for part in ("gate", "up", "down")
                )
                inner = rounded(x[row])
                made[row] += weight * (
                    rounded(activated(self.a.activation, inner @ gate.T) * (inner @ up.T)) @ down.T
                )
        return made

    def logits(
        self, rows: Sequence[OracleRow], adapter: PackedFile | None = None, signal: Array | None = None
    ) -> Array:
        """[rows, vocabulary]; `signal`: what noisy rows are conditioned on, [noisy rows, hidden]."""
        a, packed, hidden = self.a, self.packed, self.hidden
        noisy = np.array([row.noisy for row in rows])
        embedding = unpacked(packed, "embedding")
        x = embedding[[row.id for row in rows]] * a.embedding_scale
        mask = numbers(packed, "mask_embedding", hidden)
        for i, row in enumerate(rows):
            if row.masked and mask is not None:
                x[i] = mask
        if a.embedding_norm:
            x = self.norm("embedding_norm", x)
        if a.self_conditioning:
            x[noisy] = self.conditioned(x[noisy], signal)
        positions = np.array([row.position for row in rows])
        for layer, kind in enumerate(a.layer_kinds()):
            normed = self.norm(f"{layer}.attention_norm", x, f"{layer}.attention_shift")
            q, k, v = self.heads(layer, kind, normed, rows, adapter)
            q, k = (self.rotated(each, positions, kind) for each in (q, k))
            if a.late_qk_norm:
                q = self.head_norm(f"{layer}.query_norm", q, kind)
                k = self.head_norm(f"{layer}.key_norm", k, kind)
            k, v = (half.astype(np.float16).astype(float) for half in (k, v))
            if a.query_growth:
                q = q * (1 + a.query_growth * np.log1p(positions // a.query_period))[:, None, None]
            seen = self.attended(q, k, v, rows, kind).reshape(len(rows), -1)
            if a.attention_gate:
                gate = unpacked(packed, f"{layer}.gate")
                seen = seen / (1 + np.exp(-rounded(normed) @ gate[: seen.shape[1]].T))
            made = self.product(f"{layer}.output", 0, seen, rows, adapter)
            x = self.joined(f"{layer}.attention", x, made)
            x = self.joined(f"{layer}.ffn", x, self.fed_forward(layer, kind, x, rows, adapter))
            scales = [numbers(packed, f"{layer}.{name}", 1) for name in ("scale", "noisy_scale")]
            if scales[0] is not None and scales[1] is not None:
                x = x * np.where(noisy, scales[1], scales[0])[:, None]
        head = embedding if a.tied_embeddings else unpacked(packed, "head")
        made = rounded(self.norm("norm", x, "norm_shift")) @ head.T
        bias = numbers(packed, "head_bias", a.vocab_size)
        made = made if bias is None else made + bias
        return a.logit_softcap * np.tanh(made / a.logit_softcap) if a.logit_softcap else made
