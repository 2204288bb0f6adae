"""Which rows of a forward belong together, for what mixes rows otherwise than by attention.

Shapes: N rows, S slots, K positions before a row that a convolution takes in, C channels, D head dim, J key
heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vermilion.models.families import Architecture

Before = Callable[[Tensor, int], Tensor]
"""(inputs of a convolution [N, C], where a slot keeps them) -> those of the K positions before each row,
[N, K, C], oldest first, zeros before the text. Keeps the rows' own."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What a layer may ask for beside attention."""

    positions_N: Tensor
    blocks_N: Tensor
    """A number for each block, from 0 on; rows with the same one choose experts together."""
    before_NK: Tensor
    """Slots of the positions before each row, oldest first; -1 before the text."""
    before: Before | None = None
    """In layers that keep more than keys and values."""

    @classmethod
    def of_one_text(cls, architecture: Architecture, positions_N: Tensor, slots_N: Tensor) -> Neighbours:
        """Where all rows are of one text, whose positions lie side by side in the slots."""
        size, reach = routing_block(architecture), reach_of(architecture)
        back_K = torch.arange(reach, 0, -1, device=slots_N.device)
        blocks_N = positions_N // max(1, size)
        return cls(positions_N, blocks_N - blocks_N[:1], (slots_N[:, None] - back_K).clamp(min=-1))

    def over(self, slots_N: Tensor, tails_S2T: Tensor) -> Neighbours:
        """The same with what the slots of one layer keep behind keys and values."""

        def inputs(x_NC: Tensor, at: int) -> Tensor:
            half = x_NC.shape[1] // 2
            kept_S2H = tails_S2T[:, :, at // 2 : at // 2 + half]
            kept_S2H.index_copy_(0, slots_N, x_NC.view(-1, 2, half))
            found_NKC = kept_S2H[self.before_NK.clamp(min=0)].flatten(2)
            return found_NKC * (self.before_NK >= 0)[..., None]

        return replace(self, before=inputs)


def routing_block(architecture: Architecture) -> int:
    """Positions of the blocks that choose experts together; 0 where none do."""
    experts = (kind.experts for kind in architecture.layers)
    return next((each.block_size for each in experts if each is not None and each.block_capacity), 0)


def reach_of(architecture: Architecture) -> int:
    """Positions before a row that its convolutions take in."""
    return max(0, architecture.canon_kernel - 1)


def needed(architecture: Architecture) -> bool:
    """Whether any layer asks."""
    return bool(reach_of(architecture) or routing_block(architecture))


def pool_shape(architecture: Architecture) -> tuple[int, int]:
    """Key heads and numbers of each that a slot has, twice, for every layer. Where layers differ, or keep
    more than keys and values, the heads are 1 and hold the most that a layer needs; it uses the beginning."""
    a = architecture
    shapes = {(kind.num_kv_heads, kind.head_dim) for kind in a.layer_kinds()}
    kept = sum(a.convolutions().values())
    if len(shapes) == 1 and not kept:
        return shapes.pop()
    return 1, max(math.prod(shape) for shape in shapes) + kept // 2
