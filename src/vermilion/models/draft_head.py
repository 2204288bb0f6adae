"""What a noisy row would say if it knew the token before the one it predicts.

The rows of one denoise pass guess side by side: each knows the settled text, none what its neighbour will
say, so likely words join into unlikely pairs. This head makes a row's guess depend on the token before it,
without another pass, as the sequential draft heads of Hydra do (arXiv 2402.05109). It only moves drafts
about, which the base verifies. Shapes: R rows, H hidden, K bottleneck.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vermilion.models.linear import Linear


class DraftHead(nn.Module):
    """A bottleneck over a row's hidden state and the embedding of the token before."""

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.down = Linear(2 * hidden_size, (rank,))
        self.up = Linear(rank, (hidden_size,))

    @classmethod
    def fresh(cls, hidden_size: int, rank: int, seed: int) -> DraftHead:
        """One that changes nothing yet: `down` of normal entries with variance 1 / inputs, `up` zero."""
        down = torch.randn(rank, 2 * hidden_size, generator=torch.Generator().manual_seed(seed))
        return cls.of(down / math.sqrt(2 * hidden_size), torch.zeros(hidden_size, rank))

    @classmethod
    def of(cls, down: Tensor, up: Tensor) -> DraftHead:
        """With these weights, not copied: [K, 2H] and [H, K]."""
        with torch.device("meta"):
            head = cls(up.shape[0], up.shape[1])
        head.down.load_part(0, down)
        head.up.load_part(0, up)
        return head

    def forward(self, hidden_RH: Tensor, before_RH: Tensor) -> Tensor:
        """[R, H] to add to the rows' hidden states after the last norm; `before` are embeddings."""
        # Embeddings are some ten times smaller than hidden states: each gets a mean square of one.
        size = hidden_RH.shape[-1:]
        both = torch.cat([F.rms_norm(hidden_RH, size), F.rms_norm(before_RH, size)], -1)
        added_RH: Tensor = self.up(F.silu(self.down(both)))
        return added_RH
