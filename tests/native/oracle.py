"""A forward pass in float64 numpy over the packed weights, as plainly as possible, and reading of tiles.

It rounds what the kernels round: inputs of products to eight bits, keys and values to half precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vermilion.models.families import Architecture
from vermilion.native.packed_file import Array, PackedFile


@dataclass(frozen=True)
class OracleRow:
    id: int
    position: int
    sees: tuple[int, ...]
    """Rows whose keys it attends to."""
    noisy: bool = False
    masked: bool = False


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


def rms_norm(x: Array, weight: Array | None, eps: float) -> Array:
    normed: Array = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return normed if weight is None else normed * weight


class Oracle:
    def __init__(self, packed: PackedFile, architecture: Architecture) -> None:
        self.packed, self.a = packed, architecture

    def product(
        self, name: str, part: int, x: Array, rows: Sequence[OracleRow], adapter: PackedFile | None
    ) -> Array:
        size = unpacked(self.packed, f"{name}.{part}").shape[0]
        x = rounded(x)
        y = x @ unpacked(self.packed, f"{name}.{part}").T
        bias = numbers(self.packed, f"{name}.bias.{part}", size)
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

    def rotated(self, heads_NHD: Array, positions: Array) -> Array:
        size = int(self.a.head_dim * self.a.rope_fraction)
        angle = positions[:, None] / self.a.rope_theta ** (np.arange(0, size, 2) / size)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        low, high, rest = np.split(heads_NHD, [size // 2, size], -1)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin, rest], -1)

    def attended(self, q: Array, k: Array, v: Array, rows: Sequence[OracleRow]) -> Array:
        group = self.a.num_heads // self.a.num_kv_heads
        out = np.zeros_like(q)
        for i, row in enumerate(rows):
            for head in range(self.a.num_heads):
                keys, values = k[list(row.sees), head // group], v[list(row.sees), head // group]
                score = keys @ q[i, head] / np.sqrt(self.a.head_dim)
                weight = np.exp(score - score.max())
                out[i, head] = weight @ values / weight.sum()
        return out

    def logits(self, rows: Sequence[OracleRow], adapter: PackedFile | None = None) -> Array:
        """[rows, vocabulary]"""
        a, packed = self.a, self.packed
        embedding = unpacked(packed, "embedding")
        x = embedding[[row.id for row in rows]]
        mask = numbers(packed, "mask_embedding", a.hidden_size)
        for i, row in enumerate(rows):
            if row.masked and mask is not None:
                x[i] = mask
        positions = np.array([row.position for row in rows])
        for layer in range(a.num_layers):
            normed = rms_norm(x, numbers(packed, f"{layer}.attention_norm", a.hidden_size), a.norm_eps)
            parts = [self.product(f"{layer}.qkv", part, normed, rows, adapter) for part in range(3)]
            q, k, v = (part.reshape(len(rows), -1, a.head_dim) for part in parts)
            if a.qk_norm:
                q = rms_norm(q, numbers(packed, f"{layer}.query_norm", a.head_dim), a.norm_eps)
                k = rms_norm(k, numbers(packed, f"{layer}.key_norm", a.head_dim), a.norm_eps)
            k, v = (half.astype(np.float16).astype(float) for half in (self.rotated(k, positions), v))
            seen = self.attended(self.rotated(q, positions), k, v, rows)
            x = x + self.product(f"{layer}.output", 0, seen.reshape(len(rows), -1), rows, adapter)
            normed = rms_norm(x, numbers(packed, f"{layer}.ffn_norm", a.hidden_size), a.norm_eps)
            gate, up = (self.product(f"{layer}.gate_up", part, normed, rows, adapter) for part in range(2))
            x = x + self.product(f"{layer}.down", 0, gate / (1 + np.exp(-gate)) * up, rows, adapter)
        head = embedding if a.tied_embeddings else unpacked(packed, "head")
        return rounded(rms_norm(x, numbers(packed, "norm", a.hidden_size), a.norm_eps)) @ head.T
