"""Linear layers: the one owner of how a product is computed, whatever its weight is stored as.

Shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vermilion.models.lora import Lora
from vermilion.models.product import product
from vermilion.models.shares import Pieces, Share

_FLOAT8_MULTIPLE = 16
"""Of both sizes of a weight, for a GPU's product in float8."""
NOISY_ROWS = "denoiser"
"""Name of the adapter of noisy rows, known to the model or not."""


@dataclass(frozen=True, slots=True)
class WeightCut:
    """How the processes of a model share a weight: by its outputs (0) or its inputs (1)."""

    dim: int
    share: Share


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """The rows [start, end) of a forward go through the adapter of this name."""

    name: str
    start: int
    end: int


class Linear(nn.Module):
    """One or more projections of the same input, fused into one product; the weight is dense.

    An entry of `adapters` changes the rows that name it: a `Lora` adds to them, another `Linear` computes
    them in this one's place (with this one's bias). A row may go through several.
    """

    def __init__(self, in_size: int, part_sizes: Sequence[int], *, bias: bool = False) -> None:
        """Under `torch.device("meta")` it takes no memory until its parts are loaded."""
        super().__init__()
        self.in_size = in_size
        self.part_sizes = tuple(part_sizes)
        self.out_size = sum(part_sizes)
        self._spans = [
            slice(*span) for span in itertools.pairwise(itertools.accumulate(part_sizes, initial=0))
        ]
        self.bias = nn.Parameter(torch.zeros(self.out_size)) if bias else None
        self.adapters = nn.ModuleDict()
        self.cut: WeightCut | None = None
        """None where this process holds the whole of it."""
        self._allocate()

    def _allocate(self) -> None:
        self.weight = nn.Parameter(torch.empty(self.out_size, self.in_size))

    def load(self, weight: Tensor) -> None:
        """Store the weights [O, I] of all parts, one below the other. Raises ValueError for another shape."""
        if weight.shape == (self.out_size, self.in_size) and type(self) is Linear:
            self.weight = nn.Parameter(weight, requires_grad=False)
            return
        # What is stored in another way than dense is converted part by part.
        for part, each in enumerate(torch.split(weight, list(self.part_sizes))):
            self.load_part(part, each)

    def load_part(self, part: int, weight: Tensor) -> None:
        """Store the weight [O of the part, I] of one projection, in its dtype and on its device.

        A layer of one part keeps the tensor itself. Raises ValueError for another shape.
        """
        self._check(part, weight, (self.part_sizes[part], self.in_size))
        if len(self.part_sizes) == 1:
            self.weight = nn.Parameter(weight, requires_grad=False)
            return
        self.weight = _stored(self.weight, self._spans[part], weight)

    def load_bias(self, bias_O: Tensor) -> None:
        """Store the biases of all parts."""
        assert self.bias is not None and bias_O.shape == self.bias.shape
        if self.cut is not None and self.cut.dim == 1 and self.cut.share.rank:
            bias_O = torch.zeros_like(bias_O)  # the sum over the processes takes it once
        self.bias = nn.Parameter(bias_O, requires_grad=False)

    def pieces(self, part_sizes: Sequence[int], dims: Sequence[int] = (0, 1)) -> Pieces | None:
        """What this process takes of some parts' whole weight, or of a tensor that has these of its
        dimensions; None where it takes all."""
        if self.cut is None or self.cut.dim not in dims:
            return None
        share = self.cut.share
        if self.cut.dim == 1:
            return Pieces(1, (share.span(self.in_size),), share.size)
        starts = itertools.accumulate((size * share.size for size in part_sizes), initial=0)
        spans = [
            slice(start + share.rank * size, start + (share.rank + 1) * size)
            for start, size in zip(starts, part_sizes, strict=False)
        ]
        return Pieces(0, tuple(spans), share.size)

    def part_weight(self, part: int) -> Tensor:
        """The weight [O of the part, I] of one projection, dense."""
        return self._dense(self._spans[part])

    def output_rows(self, span: slice) -> Tensor:
        """The weight of some outputs, dense."""
        return self._dense(span)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight, [*ids, I]: what an embedding looks up."""
        return self._dense(ids)

    def mean_row(self, weights_RO: Tensor) -> Tensor:
        """Rows of the weight, weighed: [R, I]."""
        weight_OI = self._dense(slice(0, self.out_size))
        return weights_RO.to(weight_OI.dtype) @ weight_OI

    def _dense(self, outputs: slice | Tensor) -> Tensor:
        """Those rows of the weight, in the dtype of the activations."""
        return F.embedding(outputs, self.weight) if isinstance(outputs, Tensor) else self.weight[outputs]

    def multiply(self, x_NI: Tensor, bias_O: Tensor | None) -> Tensor:
        """x W^T + b, in memory of its own."""
        return product(x_NI, self.weight, bias_O)

    def forward(self, x_NI: Tensor, adapters: Sequence[AdapterRows] = ()) -> Tensor:
        """[N, O]. Rows may name adapters that this layer lacks; those leave it as it is."""
        named = [(rows, self.adapters[rows.name]) for rows in adapters if rows.name in self.adapters]
        y_NO = self._replaced(x_NI, [(rows, other) for rows, other in named if isinstance(other, Linear)])
        for rows, other in named:
            if isinstance(other, Lora):
                y_NO = other(y_NO, x_NI, slice(rows.start, rows.end))
        return y_NO

    def _replaced(self, x_NI: Tensor, others: Sequence[tuple[AdapterRows, Linear]]) -> Tensor:
        """The product, of the rows that name another layer by that one; no row is computed twice."""
        if not others:
            return self.multiply(x_NI, self.bias)
        pieces, at = [], 0
        for rows, other in sorted(others, key=lambda each: each[0].start):
            if at < rows.start:
                pieces.append(self.multiply(x_NI[at : rows.start], self.bias))
            pieces.append(other.multiply(x_NI[rows.start : rows.end], self.bias))
            at = rows.end
        if at < x_NI.shape[0]:
            pieces.append(self.multiply(x_NI[at:], self.bias))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _check(self, part: int, given: Tensor, wanted: tuple[int, ...]) -> None:
        if given.shape != wanted:
            raise ValueError(
                f"Part {part} of a linear layer is {list(wanted)}, in the checkpoint {list(given.shape)}."
            )


class ScaledRows(nn.Module):
    """A weight [O, I] in eight bits, each row by its largest number; dense in the dtype that it came in."""

    def __init__(self, out_size: int, in_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.empty(out_size, in_size, dtype=dtype), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(out_size), requires_grad=False)

    def load(self, span: slice, weight: Tensor) -> None:
        codes, scale_O1 = _coded(weight, self.codes.dtype)
        self.codes = _stored(self.codes, span, codes)
        self.scale = _stored(self.scale, span, scale_O1[:, 0])

    def dense(self, outputs: slice | Tensor) -> Tensor:
        return self.codes[outputs].to(self.scale.dtype) * self.scale[outputs][..., None]

    def product(self, x_NI: Tensor) -> Tensor:
        """x W^T, the codes read as numbers of the dtype of x."""
        return product(x_NI, self.codes.to(x_NI.dtype)) * self.scale


class Int8Linear(Linear):
    """Products read the weight dense, so it saves memory and not time."""

    def _allocate(self) -> None:
        self.stored = ScaledRows(self.out_size, self.in_size, torch.int8)

    def load_part(self, part: int, weight: Tensor) -> None:
        self._check(part, weight, (self.part_sizes[part], self.in_size))
        self.stored.load(self._spans[part], weight)

    def _dense(self, outputs: slice | Tensor) -> Tensor:
        return self.stored.dense(outputs)

    def multiply(self, x_NI: Tensor, bias_O: Tensor | None) -> Tensor:
        y_NO = self.stored.product(x_NI)
        return y_NO if bias_O is None else y_NO + bias_O


class Float8Linear(Linear):
    """e4m3. Rows in bfloat16 are rounded to that as well, with a scale each, and multiplied as they are; GPUs
    have such products from compute capability 8.9 on."""

    def _allocate(self) -> None:
        self.stored = ScaledRows(self.out_size, self.in_size, torch.float8_e4m3fn)

    def load_part(self, part: int, weight: Tensor) -> None:
        self._check(part, weight, (self.part_sizes[part], self.in_size))
        self.stored.load(self._spans[part], weight)

    def _dense(self, outputs: slice | Tensor) -> Tensor:
        return self.stored.dense(outputs)

    def multiply(self, x_NI: Tensor, bias_O: Tensor | None) -> Tensor:
        if (
            x_NI.dtype != torch.bfloat16
            or self.in_size % _FLOAT8_MULTIPLE
            or self.out_size % _FLOAT8_MULTIPLE
        ):
            y_NO = self.stored.product(x_NI)
        else:
            codes, scale = self.stored.codes, self.stored.scale
            rows_NI, scale_N1 = _coded(x_NI.float(), codes.dtype)
            y_NO = torch._scaled_mm(rows_NI, codes.t(), scale_N1, scale.float()[None], out_dtype=x_NI.dtype)
        return y_NO if bias_O is None else y_NO + bias_O


LINEAR_KINDS: dict[str, type[Linear]] = {
    "dense": Linear,
    "int8": Int8Linear,
    "fp8": Float8Linear,
}
"""What weights may be stored as. A further kind overrides what `Int8Linear` does, and has a row here."""


def _coded(weight_OI: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(numbers of `dtype`, scales [O, 1]): each row by its largest number."""
    floating = dtype.is_floating_point
    largest = torch.finfo(dtype).max if floating else float(torch.iinfo(dtype).max)
    tiny = torch.finfo(weight_OI.dtype).tiny
    scale_O1 = weight_OI.abs().amax(1, keepdim=True).clamp_min(tiny * largest) / largest
    # The scale may have been rounded down, and what is above the largest float8 is no number.
    codes_OI = (weight_OI / scale_O1).clamp(-largest, largest)
    return (codes_OI if floating else codes_OI.round()).to(dtype), scale_O1


def _stored(home: nn.Parameter, span: slice, values: Tensor) -> nn.Parameter:
    """`home` with `values` in its span; a fresh one of that dtype and place, the rest uninitialised, where
    it had another."""
    if home.dtype != values.dtype or home.device != values.device:
        empty = torch.empty(home.shape, dtype=values.dtype, device=values.device)
        home = nn.Parameter(empty, requires_grad=False)
    home.requires_grad_(False)
    home[span] = values
    return home
