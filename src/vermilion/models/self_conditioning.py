"""Self-conditioning (arXiv 2208.04202): a noisy row hears what the last step made of its position."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vermilion.models.families import Architecture
from vermilion.models.layers import ACTIVATIONS, Norm
from vermilion.models.linear import Linear


class SelfConditioning(nn.Module):
    """A gated feed-forward of the mean embedding that the last step predicted, added to the row's own; the
    sum is normed without a weight (DiffusionGemma)."""

    def __init__(self, architecture: Architecture, linear: type[Linear]) -> None:
        super().__init__()
        a = architecture
        self.norm = Norm(a.hidden_size, a.norm_eps)
        self.gate_up = linear(a.hidden_size, (a.ffn_size, a.ffn_size))
        self.down = linear(a.ffn_size, (a.hidden_size,))
        self.activation = ACTIVATIONS[a.activation]

    def forward(self, x_MH: Tensor, signal_MH: Tensor) -> Tensor:
        """[M, H]; a signal of zeros, as in the first step, adds nothing."""
        gate, up = self.gate_up(self.norm(signal_MH)).chunk(2, -1)
        sum_MH = x_MH + self.down(self.activation(gate) * up)
        return F.rms_norm(sum_MH, (x_MH.shape[-1],), None, self.norm.eps)
