"""Rotary position embedding on tensors, rotate-half layout (arXiv 2104.09864)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vermilion.models.families import Architecture, Rope

Turn = tuple[Tensor, Tensor]
"""Cosines and sines of the rows' angles, each [N, 1, size]; the sine's first half is negated."""


class Rotary:
    """The rotary embeddings of a model's layers, each computed once a forward."""

    def __init__(self, architecture: Architecture) -> None:
        kinds = architecture.layer_kinds()
        ropes = [architecture.rope(kind) if kind.rotated else None for kind in kinds]
        self._ropes = [rope for index, rope in enumerate(ropes) if rope not in ropes[:index]]
        self._of_layer = [self._ropes.index(rope) for rope in ropes]

    def at(self, positions_N: Tensor, dtype: torch.dtype) -> Sequence[Turn | None]:
        """Every layer's turn; None where nothing is rotated."""
        turns = [None if rope is None else turn(rope, positions_N, dtype) for rope in self._ropes]
        return [turns[index] for index in self._of_layer]


def turn(rope: Rope, positions_N: Tensor, dtype: torch.dtype) -> Turn:
    frequencies = torch.from_numpy(rope.inverse_frequencies()).to(positions_N.device)
    return turn_by(frequencies, positions_N, dtype, rope.magnitude)


def turn_by(frequencies: Tensor, positions_N: Tensor, dtype: torch.dtype, magnitude: float = 1.0) -> Turn:
    """By frequencies in float64, [size / 2], so that far positions keep their angles."""
    angle = positions_N[:, None] * frequencies
    cos, sin = (magnitude * angle.cos()).to(dtype), (magnitude * angle.sin()).to(dtype)
    return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]


def rotate(x_NHD: Tensor, turn: Turn | None) -> Tensor:
    """Each row's heads turned by its angles."""
    if turn is None:
        return x_NHD
    cos, sin = turn
    size = cos.shape[-1]
    part = x_NHD if size == x_NHD.shape[-1] else x_NHD[..., :size]
    turned = torch.addcmul(part * cos, part.roll(size // 2, -1), sin)
    return turned if part is x_NHD else torch.cat([turned, x_NHD[..., size:]], -1)
