"""A model that several processes hold together: each has some heads of every layer and a slice of its widths.

Projections into heads and widths are cut by their outputs, those back out of them by their inputs, and what
the latter give is summed over the processes (Megatron-LM, arXiv 1909.08053).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from vermilion.errors import ConfigError
from vermilion.models.families import Architecture, LayerKind


class Sums(Protocol):
    """What the processes of a model need of each other. Every one of them must call it, in the same order."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Over all processes, in place."""

    def join(self, tensor: Tensor) -> Tensor:
        """Those of all processes side by side along the last dimension, by rank."""


class Peers:
    """The processes of one model, over a process group of their own."""

    def __init__(self, group: Any) -> None:
        """`group`: one of PyTorch's process groups, for which it has no common type."""
        self._group = group

    def sum(self, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()
        self._group.allreduce([tensor]).wait()
        return tensor

    def join(self, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self._group.size())]
        self._group.allgather([parts], [tensor]).wait()
        return torch.cat(parts, -1)


@dataclass(frozen=True, slots=True)
class Share:
    """One process's part of a model."""

    rank: int = 0
    size: int = 1
    peers: Sums | None = None
    """None for a model that one process holds, or while shapes alone matter."""

    def of(self, architecture: Architecture) -> Architecture:
        """The sizes of this process's layers. Raises ConfigError for a model that cannot be shared so."""
        if self.size == 1:
            return architecture
        a = architecture
        check_shareable(a, self.size)
        return replace(
            a,
            num_heads=a.num_heads // self.size,
            num_kv_heads=a.num_kv_heads // self.size,
            ffn_size=a.ffn_size // self.size,
            layers=tuple(self._layer(kind) for kind in a.layers),
        )

    def span(self, length: int) -> slice:
        """This process's part of what is `length` in each of them, in the whole."""
        return slice(self.rank * length, (self.rank + 1) * length)

    def _layer(self, kind: LayerKind) -> LayerKind:
        e = kind.experts
        mine = e and replace(e, ffn_size=e.ffn_size // self.size, shared_size=e.shared_size // self.size)
        return replace(kind, num_kv_heads=kind.num_kv_heads // self.size, experts=mine)


WHOLE = Share()


@dataclass(frozen=True, slots=True)
class Pieces:
    """What is taken of a tensor on disk: spans along one dimension, joined."""

    dim: int
    spans: tuple[slice, ...]
    num_shares: int

    def of(self, stored: Any) -> Tensor:
        """Of a tensor, or of one of safetensors' slices, which then reads no more than that."""
        found = [stored[(*[slice(None)] * self.dim, span)] for span in self.spans]
        return found[0] if len(found) == 1 else torch.cat(found, self.dim)

    def whole(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape on disk of what has this shape here."""
        return tuple(size * self.num_shares if dim == self.dim else size for dim, size in enumerate(shape))


def check_shareable(architecture: Architecture, num_processes: int) -> None:
    """Raises ConfigError, with the numbers that would do, where so many cannot share such a model."""
    sizes = _sizes(architecture)
    if architecture.canon_kernel:
        raise ConfigError(
            "engine.tensor_parallel: this model's convolutions run over all heads together, so they cannot "
            "be shared between processes; set 1."
        )
    if architecture.joint_qk_norm:
        raise ConfigError(
            "engine.tensor_parallel: this model norms all heads of a row together, so they cannot be shared "
            "between processes; set 1."
        )
    wrong = [f"{size} {name}" for name, size in sizes if size % num_processes]
    if wrong:
        common = math.gcd(*(size for _, size in sizes))
        allowed = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        raise ConfigError(
            f"engine.tensor_parallel: {num_processes} processes cannot share this model equally: it has "
            f"{', '.join(wrong)}. Allowed: {allowed}."
        )


def _sizes(a: Architecture) -> list[tuple[str, int]]:
    """What must be multiples of the number of processes."""
    found = [("query heads", a.num_heads)]
    for kind in a.layer_kinds():
        found.append((f"key heads of {kind.head_dim}", kind.num_kv_heads))
        if kind.dense:
            found.append(("feed-forward entries", a.ffn_size))
        if kind.experts is not None:
            found.append(("entries of each expert", kind.experts.ffn_size))
            if kind.experts.shared_size:
                found.append(("entries of the shared expert", kind.experts.shared_size))
    return list(dict.fromkeys(found))
