"""Where each tensor of a checkpoint belongs in the backbone: the published ones are parts of ours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from vermilion.models.experts import ExpertLayer
from vermilion.models.families import ExpertNames, TensorNames
from vermilion.models.layers import Layer
from vermilion.models.linear import Linear
from vermilion.models.shares import Pieces
from vermilion.models.tensor_files import Shape
from vermilion.models.transformer import Transformer
from vermilion.models.weights import Home

Pick = Callable[[Tensor], Tensor]
"""The view of a whole that one published tensor is."""


@dataclass(slots=True)
class Whole:
    """A tensor of the module, made of the published ones."""

    shape: Shape
    store: Callable[[Tensor], None]
    read: Callable[[], Tensor]
    wide: bool = False
    """At least float32, whatever the weights are."""
    tensor: Tensor | None = None
    num_filled: int = 0
    """Numbers."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a published tensor is of a module's."""

    whole: Whole
    own_shape: Shape
    """Of what this process takes of it."""
    pick: Pick
    pieces: Pieces | None = None
    """What that is; None for all."""

    @property
    def shape(self) -> Shape:
        """Of the published tensor."""
        return self.own_shape if self.pieces is None else self.pieces.whole(self.own_shape)

    def home(self, dtype: torch.dtype, device: torch.device) -> Home:
        """Memory for the published tensor, beside that of the others of its whole."""
        if self.whole.tensor is None:
            dtype = torch.promote_types(dtype, torch.float32) if self.whole.wide else dtype
            self.whole.tensor = torch.empty(self.whole.shape, dtype=dtype, device=device)
        return Home(self.pick(self.whole.tensor), self.pieces)

    def filled(self) -> None:
        """The last of a whole gives it to the module."""
        self.whole.num_filled += math.prod(self.own_shape)
        if self.whole.num_filled == math.prod(self.whole.shape) and self.whole.tensor is not None:
            self.whole.store(self.whole.tensor)
            self.whole.tensor = None

    def read(self) -> Tensor:
        """The published tensor, or what of it is here, out of the module, dense."""
        return self.pick(self.whole.read())


def places_of(
    model: Transformer, names: TensorNames, given: Container[str] = ()
) -> Iterator[tuple[str, Place]]:
    """Every tensor's name and place; `given` are the checkpoint's names, which tell whether it stacks its
    experts."""
    yield from _linear_places((names.embedding,), model.embedding, names.bare)
    yield f"{names.norm}.weight", _parameter_place(model.norm, "weight")
    if model.head is not None:
        yield from _linear_places((names.head,), model.head)
    for ours, published in names.model_products.items():
        yield from _linear_places(published, cast(Linear, model.get_submodule(ours)))
    for ours, name in names.model_norms.items():
        yield f"{name}.weight", _parameter_place(model.get_submodule(ours), "weight")
    for index, layer in enumerate(cast(Iterable[Layer], model.layers)):
        prefix = names.layer.format(index)
        for ours, published in names.products.items():
            linear = getattr(layer, ours)
            if linear is not None:
                yield from _linear_places([prefix + name for name in published], linear)
        if layer.experts is not None:
            yield from _expert_places(prefix, names.experts, layer.experts, given)
        for ours, name in names.norms.items():
            norm = getattr(layer, ours)
            if norm is not None:
                yield f"{prefix}{name}.weight", _parameter_place(norm, "weight")
        for path, name in names.parameters.items():
            module, _, parameter = path.rpartition(".")
            wide = parameter == "inverse_frequencies"
            yield name.format(index), _parameter_place(layer.get_submodule(module), parameter, wide=wide)
        for path, published in names.convolutions.items():
            yield from _convolution_places([prefix + name for name in published], layer, path)


def _linear_places(
    names: Sequence[str], linear: Linear, bare: Sequence[str] = ()
) -> Iterator[tuple[str, Place]]:
    """One name for several parts: the checkpoint keeps them as one tensor. Where there are more names than
    parts, the last ones are of parts that this model does without."""
    sizes = linear.part_sizes if len(names) > 1 else (linear.out_size,)
    spans = _spans(sizes)
    wholes = {"weight": _weight(linear)}
    if linear.bias is not None:
        wholes["bias"] = Whole((linear.out_size,), linear.load_bias, lambda: _bias(linear))
    for kind, whole in wholes.items():
        for name, span in zip(names, spans, strict=False):
            shape = (span.stop - span.start, *whole.shape[1:])
            parts = linear.part_sizes if len(names) == 1 else shape[:1]
            pieces = linear.pieces(parts, (0, 1) if kind == "weight" else (0,))
            yield (
                name if name in bare else f"{name}.{kind}",
                Place(whole, shape, partial(_rows, span), pieces),
            )


def _weight(linear: Linear) -> Whole:
    shape = (linear.out_size, linear.in_size)
    return Whole(shape, linear.load, lambda: linear.output_rows(slice(0, linear.out_size)))


def _expert_places(
    prefix: str, names: ExpertNames, experts: ExpertLayer, given: Container[str]
) -> Iterator[tuple[str, Place]]:
    router = experts.router
    yield f"{prefix}{names.router}", _parameter_place(router, "weight", wide=True)
    if router.bias is not None:
        yield f"{prefix}{names.router_bias}", _parameter_place(router, "bias", wide=True)
    stacked = [name for name in names.stacked if f"{prefix}{name}" in given]
    if stacked:
        yield from _stacked_places(prefix, {name: names.stacked[name] for name in stacked}, experts)
    else:
        numbers = range(router.experts.num_experts)
        for parts, linear in ((names.gate_up, experts.gate_up), (names.down, experts.down)):
            each = [f"{prefix}{part.format(number)}" for number in numbers for part in parts]
            yield from _linear_places(each, linear)
    for parts, shared in (
        (names.shared_gate_up, experts.shared_gate_up),
        (names.shared_down, experts.shared_down),
    ):
        if shared is not None:
            yield from _linear_places([prefix + part for part in parts], shared)


def _stacked_places(
    prefix: str, stacked: dict[str, tuple[str, ...]], experts: ExpertLayer
) -> Iterator[tuple[str, Place]]:
    """Of tensors [E, O, I] that hold the same part, or parts, of every expert."""
    e = experts.router.experts
    wholes = {
        which: (_weight(linear), linear)
        for which, linear in (("gate", experts.gate_up), ("down", experts.down))
    }
    for name, held in stacked.items():
        if held == ("down",):
            shape, parts = (e.num_experts, experts.down.out_size // e.num_experts, e.ffn_size), slice(None)
        else:
            shape = (e.num_experts, len(held) * e.ffn_size, experts.gate_up.in_size)
            first = ("gate", "up").index(held[0]) * e.ffn_size
            parts = slice(first, first + shape[1])
        whole, linear = wholes["down" if held == ("down",) else "gate"]
        cut = linear.pieces([e.ffn_size] * len(held))
        pieces = cut and replace(cut, dim=cut.dim + 1)
        yield f"{prefix}{name}", Place(whole, shape, partial(_of_each, e.num_experts, parts), pieces)


def _convolution_places(names: Sequence[str], layer: Layer, path: str) -> Iterator[tuple[str, Place]]:
    whole = _parameter_place(layer.get_submodule(path), "weight").whole
    sizes = layer.qkv.part_sizes if len(names) > 1 else whole.shape[:1]
    for name, span in zip(names, _spans(sizes), strict=True):
        shape = (span.stop - span.start, *whole.shape[1:])
        yield f"{name}.weight", Place(whole, shape, partial(_rows, span))


def _spans(sizes: Sequence[int]) -> list[slice]:
    return [slice(*span) for span in itertools.pairwise(itertools.accumulate(sizes, initial=0))]


def _rows(span: slice, whole: Tensor) -> Tensor:
    return whole[span]


def _of_each(num_experts: int, parts: slice, whole: Tensor) -> Tensor:
    return whole.view(num_experts, -1, whole.shape[-1])[:, parts]


def _parameter_place(module: nn.Module, name: str, *, wide: bool = False) -> Place:
    def store(tensor: Tensor) -> None:
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))

    shape = tuple(getattr(module, name).shape)
    return Place(Whole(shape, store, lambda: getattr(module, name), wide), shape, lambda whole: whole)


def _bias(linear: Linear) -> Tensor:
    assert linear.bias is not None
    return linear.bias
