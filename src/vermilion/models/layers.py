"""The pieces of the one backbone. Shapes: N rows of one forward, H hidden, D head dim."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.Module):
    """RMSNorm over the last dimension (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_NH: Tensor) -> Tensor:
        return F.rms_norm(x_NH, (x_NH.shape[-1],), self.weight, self.eps)


class GatedLinear(nn.Module):
    """One or more projections of the same input, fused into one product, with an adapter for noisy rows.

    Rows [0, num_clean) get x W^T + b; the others also get, for each fused part p, scale (x A_p^T) B_p^T
    (LoRA, arXiv 2106.09685). The scale is folded into B.
    """

    def __init__(self, in_size: int, part_sizes: Sequence[int], *, bias: bool = False) -> None:
        super().__init__()
        self.part_sizes = tuple(part_sizes)
        self.weight = nn.Parameter(torch.empty(sum(part_sizes), in_size))
        self.bias = nn.Parameter(torch.zeros(sum(part_sizes))) if bias else None
        self.lora_a: nn.Parameter | None = None
        self.lora_b = nn.ParameterList()

    def adapt(self, pairs: Sequence[tuple[Tensor, Tensor]], scale: float) -> None:
        """Attach one (A [rank, in], B [out, rank]) per part, all of one rank."""
        self.lora_a = nn.Parameter(torch.cat([a.to(self.weight) for a, _ in pairs]))
        self.lora_b = nn.ParameterList([(b * scale).to(self.weight).contiguous() for _, b in pairs])

    def forward(self, x_NI: Tensor, num_clean: int) -> Tensor:
        y_NO = F.linear(x_NI, self.weight, self.bias)
        if self.lora_a is None or num_clean == x_NI.shape[0]:
            return y_NO
        low = F.linear(x_NI[num_clean:], self.lora_a)
        rank = self.lora_a.shape[0] // len(self.part_sizes)
        column = 0
        # In place on column slices: the fused output is written once, which is what small batches wait for.
        for part, (size, b) in enumerate(zip(self.part_sizes, self.lora_b, strict=True)):
            y_NO[num_clean:, column : column + size].addmm_(low[:, part * rank : (part + 1) * rank], b.t())
            column += size
        return y_NO


class Rotary(nn.Module):
    """Rotary position embedding, rotate-half layout (arXiv 2104.09864), over a leading share of each head."""

    def __init__(self, head_dim: int, theta: float, context_length: int, fraction: float) -> None:
        super().__init__()
        size = int(head_dim * fraction)
        inverse = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
        angle = torch.arange(context_length, dtype=torch.float64)[:, None] * inverse
        angle = torch.cat([angle, angle], -1)
        self.size = size
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def at(self, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, each [N, 1, size], for one forward; the sine's first half is negated for `rotate`."""
        cos, sin = self.cos[positions_N], self.sin[positions_N]  # type: ignore[index]
        half = self.size // 2
        sin = torch.cat([-sin[:, :half], sin[:, half:]], -1)
        return cos[:, None], sin[:, None]

    def rotate(self, x_NHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        part = x_NHD if self.size == x_NHD.shape[-1] else x_NHD[..., : self.size]
        turned = torch.addcmul(part * cos, part.roll(self.size // 2, -1), sin)
        return turned if part is x_NHD else torch.cat([turned, x_NHD[..., self.size :]], -1)
