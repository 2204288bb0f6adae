"""Adapters: what rows of a forward may go through on top of the base, by name.

An adapter is one change for each fused product, or none: a LoRA that adds, or a second weight that computes
in its place. The denoiser is one (`DENOISER`: the rows of canvases go through it), a request's fine-tuned one
another; rows may go through both. A LoRA lies on disk as PEFT writes it, on any of the seven projections.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vermilion.models import lora_folder
from vermilion.models.families import Architecture
from vermilion.models.linear import NOISY_ROWS, Linear
from vermilion.models.lora import Lora, Pair
from vermilion.models.tensor_files import Shape
from vermilion.models.transformer import Transformer

DENOISER = NOISY_ROWS
Pairs = Mapping[str, Pair]
"""{module name (`model.layers.0.self_attn.q_proj`): (A [R, I], B [O, R])}"""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter, fused as the backbone's products are."""

    changes: Sequence[Lora | Linear | None]
    """In the order of `Transformer.products`; None where one is left alone."""


def lora(model: Transformer, pairs: Pairs, scale: float, *, folded: bool = False) -> Adapter:
    """A LoRA in the model's dtype and on its device; modules without a pair stay as they are."""
    like, changes = model.norm.weight, list[Lora | Linear | None]()
    for linear, names in model.products():
        found = [
            _own(linear, pairs.get(name), size) for name, size in zip(names, linear.part_sizes, strict=True)
        ]
        some = any(pair is not None for pair in found)
        changes.append(Lora(linear.part_sizes, found, scale, folded=folded).to(like) if some else None)
    return Adapter(changes)


def _own(linear: Linear, pair: Pair | None, size: int) -> Pair | None:
    """What of a part's whole pair belongs to a product that other processes share."""
    if pair is None:
        return None
    a_RI, b_OR = pair
    by_outputs, by_inputs = linear.pieces((size,), (0,)), linear.pieces((), (1,))
    return (by_inputs.of(a_RI) if by_inputs else a_RI), (by_outputs.of(b_OR) if by_outputs else b_OR)


def copy(model: Transformer) -> Adapter:
    """The base's own projections a second time, to be trained apart from it."""
    tensors = {
        f"{name}.weight": linear.part_weight(part).detach().clone()
        for linear, names in model.products()
        for part, name in enumerate(names)
    }
    return second_weights(model, tensors)


def second_weights(model: Transformer, tensors: MutableMapping[str, Tensor]) -> Adapter:
    """Projections of its own in place of the base's, under their names, taken out as it goes."""
    changes = []
    for linear, names in model.products():
        with torch.device("meta"):
            change = type(linear)(linear.in_size, linear.part_sizes)
        for part, name in enumerate(names):
            weight = tensors.pop(f"{name}.weight")
            cut = linear.pieces(linear.part_sizes[part : part + 1])
            change.load_part(part, weight if cut is None else cut.of(weight))
        changes.append(change)
    return Adapter(changes)


def read(folder: Path, model: Transformer, *, folded: bool = False) -> Adapter:
    """A PEFT LoRA folder. Raises ModelFileError, naming the tensor, where it does not fit the model."""
    return lora(model, *read_pairs(folder, model), folded=folded)


def read_pairs(folder: Path, model: Transformer) -> tuple[Pairs, float]:
    """The pairs of a PEFT LoRA folder, as the model's weights are, and alpha / rank. Raises as `read`."""
    like = model.norm.weight
    return lora_folder.read_pairs(folder, projections(model.architecture), like.dtype, like.device)


def projections(architecture: Architecture) -> dict[str, Shape]:
    """What an adapter may be put on: {module name: (O, I)}."""
    with torch.device("meta"):
        model = Transformer(architecture)
    return {
        name: (size, linear.in_size)
        for linear, names in model.products()
        for name, size in zip(names, linear.part_sizes, strict=True)
    }


def rank_and_scale(model: Transformer, name: str) -> tuple[int, float] | None:
    """Of the LoRA that `model` knows as `name`; None where that is none."""
    found = (linear.adapters[name] for linear, _ in model.products() if name in linear.adapters)
    change = next((change for change in found if isinstance(change, Lora)), None)
    return None if change is None else (change.b[0].shape[1], change.scale)


def attach(model: Transformer, name: str, adapter: Adapter) -> None:
    """Make `adapter` known to the model's products as `name`, which holds no dot."""
    for (linear, _), change in zip(model.products(), adapter.changes, strict=True):
        if change is not None:
            linear.adapters[name] = change


def detach(model: Transformer, name: str) -> None:
    """Forget an adapter; rows may no longer name it."""
    for linear, _ in model.products():
        if name in linear.adapters:
            del linear.adapters[name]


def fresh_pairs(model: Transformer, rank: int, target_modules: Sequence[str], seed: int) -> Pairs:
    """A LoRA that changes nothing yet: A of normal entries with variance 1 / inputs, B zero."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for linear, names in model.products():
        for name, size in zip(names, linear.part_sizes, strict=True):
            if name.rpartition(".")[2] in target_modules:
                a = torch.randn(rank, linear.in_size, generator=generator) / math.sqrt(linear.in_size)
                pairs[name] = (a, torch.zeros(size, rank))
    return pairs


def pairs_of(model: Transformer, name: str) -> Pairs:
    """The LoRA that `model` knows as `name`, detached; empty where that is none."""
    pairs: dict[str, Pair] = {}
    for linear, names in model.products():
        if name in linear.adapters and isinstance(change := linear.adapters[name], Lora):
            found = zip(names, change.pairs(), strict=True)
            pairs |= {module: pair for module, pair in found if pair is not None}
    return pairs


def weights_of(model: Transformer, name: str) -> dict[str, Tensor]:
    """The projections that `model` has in the base's place for rows that name `name`, detached; empty where
    that is no such adapter."""
    found: dict[str, Tensor] = {}
    for linear, names in model.products():
        if name in linear.adapters and isinstance(change := linear.adapters[name], Linear):
            found |= {f"{each}.weight": change.part_weight(part).detach() for part, each in enumerate(names)}
    return found
