"""LoRA on a finished diffusion model: every row, clean or noisy, runs through it.

Answers come from the clean rows (the base), which an adapter of noisy rows alone could not change; and a
draft must follow the base wherever it goes. So what is fine-tuned adds to both, beside the denoiser's own
adapter that noisy rows have, and is trained on the next token of clean rows, on the denoising of noisy ones,
or both.
On disk it is a LoRA as PEFT writes it for the base. Shapes: N rows, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vermilion.models.layers import GatedLinear
from vermilion.models.transformer import PARTS, Layer, Transformer

Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""{module name (`model.layers.0.self_attn.q_proj`): (A [R, I], B [O, R])}"""


class _Added(torch.autograd.Function):
    """y += (x A^T) B^T, part by part, in place; y's gradient goes through as it is.

    Plain operations would pad, concatenate and cast at full width, and autograd would do so again.
    """

    @staticmethod
    def forward(
        context: Any, columns: Sequence[slice], y_NO: Tensor, x_NI: Tensor, a_RI: Tensor, *b_OR: Tensor
    ) -> Tensor:
        low_NR = x_NI @ a_RI.t()
        for at, low, b in zip(columns, low_NR.chunk(len(b_OR), 1), b_OR, strict=True):
            y_NO[:, at].addmm_(low, b.t())
        context.mark_dirty(y_NO)
        context.save_for_backward(x_NI, a_RI, low_NR, *b_OR)
        context.columns = columns
        return y_NO

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, a_RI, low_NR, *b_OR = context.saved_tensors
        parts = [gradients[0][:, at] for at in context.columns]
        by_low_NR = torch.cat([part @ b for part, b in zip(parts, b_OR, strict=True)], 1)
        by_b = [part.t() @ low for part, low in zip(parts, low_NR.chunk(len(b_OR), 1), strict=True)]
        by_x = by_low_NR @ a_RI if context.needs_input_grad[2] else None
        return None, gradients[0], by_x, by_low_NR.t() @ x_NI, *by_b


class Tuned(nn.Module):
    """A fused product and, for some of its parts, a LoRA: y += scale (x A^T) B^T."""

    def __init__(
        self, linear: GatedLinear, pairs: Sequence[tuple[Tensor, Tensor] | None], scale: float
    ) -> None:
        """`pairs`: one for each part of `linear`, None where it stays as it is; at least one."""
        super().__init__()
        self.linear = linear
        like, found = linear.weight, [pair for pair in pairs if pair is not None]
        self.parts = [pair is not None for pair in pairs]
        ends = list(itertools.accumulate(linear.part_sizes))
        self._columns = [
            slice(end - size, end)
            for tuned, size, end in zip(self.parts, linear.part_sizes, ends, strict=True)
            if tuned
        ]
        self.rank = found[0][0].shape[0]
        self.scale = scale
        self.tuned_a = nn.Parameter(torch.cat([a for a, _ in found]).to(like))
        self.tuned_b = nn.ParameterList([b.to(like).contiguous() for _, b in found])

    def forward(self, x_NI: Tensor, num_clean: int) -> Tensor:
        y_NO: Tensor = self.linear(x_NI, num_clean)
        low_rank = (self.tuned_a * self.scale, *self.tuned_b)
        given = (tensor.to(y_NO.dtype) for tensor in (x_NI, *low_rank))  # once, where autocast would thrice
        changed: Tensor = _Added.apply(self._columns, y_NO, *given)  # type: ignore[no-untyped-call]
        return changed

    def merged(self) -> Tensor:
        """The product's weight [O, I] with the LoRA in it."""
        weight = self.linear.weight.detach().clone()
        pairs, row = self.pairs(), 0
        for size, pair in zip(self.linear.part_sizes, pairs, strict=True):
            if pair is not None:
                weight[row : row + size] += self.scale * (pair[1] @ pair[0])
            row += size
        return weight

    def pairs(self) -> list[tuple[Tensor, Tensor] | None]:
        """(A, B) of each part of the product."""
        a = iter(torch.split(self.tuned_a.detach(), self.rank))
        b = iter(self.tuned_b)
        return [(next(a), next(b).detach()) if tuned else None for tuned in self.parts]


def attach(model: Transformer, pairs: Pairs, scale: float) -> None:
    """Put the LoRA on `model`, in place; modules that it does not name stay as they are."""
    for index, layer in enumerate(model.layers):
        for fused, parts in PARTS.items():
            found = [pairs.get(f"model.layers.{index}.{part}") for part in parts]
            if any(pair is not None for pair in found):
                linear = cast(GatedLinear, getattr(layer, fused))
                setattr(layer, fused, Tuned(linear, found, scale))


def fresh(model: Transformer, rank: int, target_modules: Sequence[str], seed: int) -> Pairs:
    """A LoRA that changes nothing yet: A of normal entries with variance 1 / inputs, B zero."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for index, layer in enumerate(model.layers):
        for fused, parts in PARTS.items():
            linear = cast(GatedLinear, getattr(layer, fused))
            inputs = linear.weight.shape[1]
            for part, size in zip(parts, linear.part_sizes, strict=True):
                if part.rpartition(".")[2] in target_modules:
                    a = torch.randn(rank, inputs, generator=generator) / math.sqrt(inputs)
                    pairs[f"model.layers.{index}.{part}"] = (a, torch.zeros(size, rank))
    return pairs


def pairs_of(model: Transformer) -> Pairs:
    """The LoRA that is on `model`."""
    pairs = {}
    for index, layer in enumerate(model.layers):
        for fused, parts in PARTS.items():
            product_of = getattr(cast(Layer, layer), fused)
            if isinstance(product_of, Tuned):
                for part, pair in zip(parts, product_of.pairs(), strict=True):
                    if pair is not None:
                        pairs[f"model.layers.{index}.{part}"] = pair
    return pairs
