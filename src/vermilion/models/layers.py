"""The pieces of the one backbone. Shapes: N rows of one forward, H hidden, D head dim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vermilion.models.linear import AdapterRows
from vermilion.models.product import product


class Norm(nn.Module):
    """RMSNorm over the last dimension (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_NH: Tensor) -> Tensor:
        return F.rms_norm(x_NH, (x_NH.shape[-1],), self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class Lora:
    """What an adapter adds to one fused product: x A^T B^T, its scale folded into B."""

    a_RI: Tensor
    b_OR: Tensor


class GatedLinear(nn.Module):
    """One or more projections of the same input, fused into one product, with an adapter for noisy rows.

    Rows [0, num_clean) get x W^T + b; the others also get, for each fused part p, scale (x A_p^T) B_p^T
    (LoRA, arXiv 2106.09685). The scale is folded into B. Instead of an adapter, noisy rows may have a weight
    of their own (`noisy_weight`); the norms before it need no second copy, since it can absorb them. Rows
    that `adapters` lists get what the adapter of that name adds; `models/adapters.py` fills `added`.
    """

    def __init__(self, in_size: int, part_sizes: Sequence[int], *, bias: bool = False) -> None:
        super().__init__()
        self.part_sizes = tuple(part_sizes)
        self.weight = nn.Parameter(torch.empty(sum(part_sizes), in_size))
        self.bias = nn.Parameter(torch.zeros(sum(part_sizes))) if bias else None
        self.lora_a: nn.Parameter | None = None
        self.lora_b = nn.ParameterList()
        self.noisy_weight: nn.Parameter | None = None
        self.added: dict[str, Lora] = {}

    def adapt(self, pairs: Sequence[tuple[Tensor, Tensor]], scale: float) -> None:
        """Attach one (A [rank, in], B [out, rank]) per part, all of one rank."""
        self.lora_a = nn.Parameter(torch.cat([a.to(self.weight) for a, _ in pairs]))
        self.lora_b = nn.ParameterList([(b * scale).to(self.weight).contiguous() for _, b in pairs])

    def forward(self, x_NI: Tensor, num_clean: int, adapters: Sequence[AdapterRows] = ()) -> Tensor:
        y_NO = self._gated(x_NI, num_clean)
        for rows in adapters:
            lora = self.added.get(rows.name)
            if lora is not None:
                low = product(x_NI[rows.start : rows.end], lora.a_RI)
                y_NO[rows.start : rows.end] += product(low, lora.b_OR)
        return y_NO

    def _gated(self, x_NI: Tensor, num_clean: int) -> Tensor:
        if self.noisy_weight is not None and num_clean < x_NI.shape[0]:
            noisy = product(x_NI[num_clean:], self.noisy_weight, self.bias)
            clean = [product(x_NI[:num_clean], self.weight, self.bias)] if num_clean else []
            return torch.cat([*clean, noisy]) if clean else noisy
        y_NO = product(x_NI, self.weight, self.bias)
        if self.lora_a is None or num_clean == x_NI.shape[0]:
            return y_NO
        low = product(x_NI[num_clean:], self.lora_a)
        rank = self.lora_a.shape[0] // len(self.part_sizes)
        if torch.is_grad_enabled():
            # Autograd refuses a write into a product that it may need again.
            added = [
                product(part, b) for part, b in zip(torch.split(low, rank, -1), self.lora_b, strict=True)
            ]
            noisy = y_NO[num_clean:] + torch.cat(added, -1)
            return torch.cat([y_NO[:num_clean], noisy]) if num_clean else noisy
        column = 0
        for part, (size, b) in enumerate(zip(self.part_sizes, self.lora_b, strict=True)):
            y_NO[num_clean:, column : column + size] += product(low[:, part * rank : (part + 1) * rank], b)
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
