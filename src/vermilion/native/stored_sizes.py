"""The sizes in which the kernels keep tensors: multiples of 32, of a head 16, filled up with zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vermilion.models.families import Architecture, LayerKind

BLOCK = 32
"""Inputs that share a scale."""
_HEAD = 16
Array = np.ndarray[Any, Any]


def filled_up(size: int, multiple: int = BLOCK) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a matrix: `groups` runs of `size` entries, each filled up to `stored`, all to `total`."""

    size: int
    stored: int
    groups: int = 1

    @property
    def total(self) -> int:
        return filled_up(self.groups * self.stored)

    @property
    def is_filled(self) -> bool:
        """Whether nothing has to be added."""
        return self.groups * self.size == self.total

    def fill(self, values: Array, axis: int) -> Array:
        """`values` with zeros between the groups and behind them."""
        if self.is_filled:
            return values
        at = np.arange(self.groups)[:, None] * self.stored + np.arange(self.size)
        shape = list(values.shape)
        shape[axis] = self.total
        made = np.zeros(shape, values.dtype)
        made[(slice(None),) * axis + (at.reshape(-1),)] = values
        return made


def run(size: int) -> Axis:
    """One run without groups."""
    return Axis(size, filled_up(size))


def head_size(head_dim: int) -> int:
    """Components that the kernels keep of a head."""
    return filled_up(head_dim, _HEAD)


def heads(count: int, head_dim: int) -> Axis:
    """Heads side by side."""
    return Axis(head_dim, head_size(head_dim), count)


def dense_size(architecture: Architecture, kind: LayerKind) -> int:
    """Width of what every row of a layer goes through: its dense feed-forward, or its shared expert."""
    if kind.dense:
        return architecture.ffn_size
    return kind.experts.shared_size if kind.experts else 0


def product_axes(architecture: Architecture, kind: LayerKind, product: str) -> tuple[list[Axis], Axis]:
    """(outputs of each part, inputs) of a product of the layers; the kind's sizes are filled in."""
    a = architecture
    hidden, queries = run(a.hidden_size), heads(a.num_heads, kind.head_dim)
    keys, wide = heads(kind.num_kv_heads, kind.head_dim), run(dense_size(a, kind))
    return {
        "qkv": ([queries, keys] if kind.values_are_keys else [queries, keys, keys], hidden),
        "output": ([hidden], queries),
        "gate_up": ([wide] if a.condition_size else [wide, wide], hidden),
        "down": ([hidden], wide),
    }[product]
