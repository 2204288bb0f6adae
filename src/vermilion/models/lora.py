"""LoRA (arXiv 2106.09685) on one fused product. Shapes: N rows, I inputs, O outputs, R rank, P parts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vermilion.models.product import product

Pair = tuple[Tensor, Tensor]
"""(A [R, I], B [O of the part, R]), as PEFT stores them."""
_FEW_ROWS = 32
"""Up to this many, one fused multiply-add is faster than the fastest product and an addition after it."""


class Lora(nn.Module):
    """Adds scale (x A_p^T) B_p^T to the columns of each part p that it has a pair for."""

    def __init__(
        self, part_sizes: Sequence[int], pairs: Sequence[Pair | None], scale: float, *, folded: bool = False
    ) -> None:
        """`pairs`: one for each part, all of one rank; None where the part stays as it is. At least one is
        there. `folded`: B carries the scale, so that its gradient does not."""
        super().__init__()
        found = [pair for pair in pairs if pair is not None]
        self.has_part = [pair is not None for pair in pairs]
        spans = itertools.pairwise(itertools.accumulate(part_sizes, initial=0))
        self.columns = [slice(*span) for span, has in zip(spans, self.has_part, strict=True) if has]
        self.scale = scale
        self._factor = 1.0 if folded else scale
        self.a = nn.Parameter(torch.cat([a for a, _ in found]))
        self.b = nn.ParameterList([(b * (scale / self._factor)).contiguous() for _, b in found])

    def pairs(self) -> list[Pair | None]:
        """Detached (A, B) of each part, B without the scale; None where it stays as it is."""
        both = zip(self.a.detach().chunk(len(self.b)), self.b, strict=True)
        pairs = iter([(a, b.detach() * (self._factor / self.scale)) for a, b in both])
        return [next(pairs) if has else None for has in self.has_part]

    def forward(self, y_NO: Tensor, x_NI: Tensor, rows: slice) -> Tensor:
        """`y_NO`, changed in place: its `rows` get what is added for the same rows of `x_NI`."""
        x_NI = x_NI[rows]
        given = [x_NI, self.a, *self.b]
        if not x_NI.dtype == y_NO.dtype == self.a.dtype:  # cast once, where autocast would for every product
            given = [tensor.to(y_NO.dtype) for tensor in given]
        if torch.compiler.is_compiling():
            # The compiler neither traces a write into an argument nor needs it.
            return self._plain(y_NO, rows, given)
        if torch.is_grad_enabled():
            added: Tensor = _Add.apply(self.columns, self._factor, rows, y_NO, *given)  # type: ignore[no-untyped-call]
            return added
        _add(y_NO, rows, self.columns, self._factor, given)
        return y_NO

    def _plain(self, y_NO: Tensor, rows: slice, given: Sequence[Tensor]) -> Tensor:
        x_NI, a_PRI, *b_OR = given
        full_NO = torch.zeros_like(y_NO)
        for columns, a_RI, b in zip(self.columns, a_PRI.chunk(len(b_OR)), b_OR, strict=True):
            full_NO[rows, columns] = self._factor * (x_NI @ a_RI.t()) @ b.t()
        return y_NO + full_NO


def _add(
    y_NO: Tensor, rows: slice, columns: Sequence[slice], scale: float, given: Sequence[Tensor]
) -> Tensor:
    """The sum in place; returns x A^T."""
    x_NI, a_PRI, *b_OR = given
    low_NPR = product(x_NI, a_PRI)
    for at, low_NR, b in zip(columns, low_NPR.chunk(len(b_OR), 1), b_OR, strict=True):
        if low_NR.shape[0] <= _FEW_ROWS or torch.is_grad_enabled():
            y_NO[rows, at].addmm_(low_NR, b.t(), alpha=scale)
        else:
            y_NO[rows, at].add_(product(low_NR, b), alpha=scale)
    return low_NPR


class _Add(torch.autograd.Function):
    """`_add` with its gradients; that of y goes through as it is.

    Plain operations would pad, concatenate and cast at full width, and autograd would do so again.
    """

    @staticmethod
    def forward(
        context: Any, columns: Sequence[slice], scale: float, rows: slice, y_NO: Tensor, *given: Tensor
    ) -> Tensor:
        low_NPR = _add(y_NO, rows, columns, scale, given)
        context.mark_dirty(y_NO)
        context.save_for_backward(low_NPR, *given)
        context.settings = columns, scale, rows
        return y_NO

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        low_NPR, x_NI, a_PRI, *b_OR = context.saved_tensors
        columns, scale, rows = context.settings
        parts = [gradients[0][rows, at] for at in columns]
        by_low_NPR = scale * torch.cat([part @ b for part, b in zip(parts, b_OR, strict=True)], 1)
        low = low_NPR.chunk(len(b_OR), 1)
        by_b = [scale * (part.t() @ each) for part, each in zip(parts, low, strict=True)]
        by_x = by_low_NPR @ a_PRI if context.needs_input_grad[4] else None
        return None, None, None, gradients[0], by_x, by_low_NPR.t() @ x_NI, *by_b
