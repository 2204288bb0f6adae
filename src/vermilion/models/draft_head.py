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


class DraftHead(nn.Module):
    """A bottleneck over a row's hidden state and the embedding of the token before."""

    def __init__(self, hidden_size: int, rank: int) -> None:
        """One that changes nothing yet: `up` is zero, and `down` is for `fresh` or `of` to fill."""
        super().__init__()
        self.down = nn.Parameter(torch.zeros(rank, 2 * hidden_size))
        self.up = nn.Parameter(torch.zeros(hidden_size, rank))

    @classmethod
    def fresh(cls, hidden_size: int, rank: int, seed: int) -> DraftHead:
        """To be trained: `down` of normal entries with variance 1 / inputs."""
        head, generator = cls(hidden_size, rank), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            head.down.normal_(generator=generator).div_(math.sqrt(2 * hidden_size))
        return head

    @classmethod
    def of(cls, down: Tensor, up: Tensor) -> DraftHead:
        """With these weights, not copied: [K, 2H] and [H, K]."""
        head = cls(0, 0)
        head.down, head.up = nn.Parameter(down), nn.Parameter(up)
        return head

    def forward(self, hidden_RH: Tensor, before_RH: Tensor) -> Tensor:
        """[R, H] to add to the rows' hidden states after the last norm; `before` are embeddings."""
        # Embeddings are some ten times smaller than hidden states: each gets a mean square of one.
        size = hidden_RH.shape[-1:]
        both = torch.cat([F.rms_norm(hidden_RH, size), F.rms_norm(before_RH, size)], -1)
        return F.linear(F.silu(F.linear(both, self.down)), self.up)
