"""Packs what few models have besides plain layers: modulated norms, norms of branches, self-conditioning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vermilion.models.families import LLAMA, Architecture
from vermilion.native.packed_file import PackWriter, Weight
from vermilion.native.stored_sizes import Array, run

Take = Callable[[str], Weight | None]
"""A tensor by Hugging Face's name, or by the path of our module; None where the checkpoint has none."""
BRANCH_NORMS = ("attention_out_norm", "ffn_out_norm", "dense_out_norm", "expert_out_norm", "expert_norm")
"""Norms of a `models/sandwich_layer.py`."""
_FREQUENCIES = 128


def pack_modulations(writer: PackWriter, architecture: Architecture, take: Take) -> None:
    """The norms of a `models/dit.py`. The models are not told the time, so what it does to norms and to what
    leaves the halves of a layer are vectors."""
    size, prefix = architecture.hidden_size, LLAMA.layer

    def linear(name: str, x: Array) -> Array:
        weight, bias = _taken(take, f"{name}.weight"), _taken(take, f"{name}.bias").numbers()
        made: Array = weight.floats().read(0, weight.shape[0]) @ x + bias
        return made

    def pack(name: str, values: Array) -> None:
        writer.numbers(name, run(size).fill(values.astype(np.float32), 0))

    angles = np.repeat(np.array([1.0, 0.0], np.float32), _FREQUENCIES)
    told = _silu(linear("condition.second.0", _silu(linear("condition.first.0", angles))))
    shift, scale = np.split(linear("norm.modulation.0", told), 2)
    pack("norm", _taken(take, "model.norm.weight").numbers() * (1 + scale))
    pack("norm_shift", shift)
    for index in range(architecture.num_layers):
        parts = iter(np.split(linear(f"{prefix.format(index)}modulation", told), 6))
        for half, norm in (("attention", "attention_norm"), ("ffn", "ffn_norm")):
            shift, scale, gate = next(parts), next(parts), next(parts)
            weight = _taken(take, f"{prefix.format(index)}{LLAMA.norms[norm]}.weight").numbers()
            pack(f"{index}.{norm}", weight * (1 + scale))
            pack(f"{index}.{half}_shift", shift)
            pack(f"{index}.{half}_gate", gate)


def pack_self_conditioning(writer: PackWriter, architecture: Architecture, take: Take, bits: int) -> None:
    hidden, wide = run(architecture.hidden_size), run(architecture.ffn_size)
    writer.numbers(
        "conditioning.norm", hidden.fill(_taken(take, "self_conditioning.norm.weight").numbers(), 0)
    )
    for ours, name, outputs, inputs in (
        ("gate", "gate_up.0", wide, hidden),
        ("up", "gate_up.1", wide, hidden),
        ("down", "down.0", hidden, wide),
    ):
        weight = _taken(take, f"self_conditioning.{name}.weight")
        writer.matrix(f"conditioning.{ours}", weight, bits, outputs, inputs)


def _taken(take: Take, name: str) -> Weight:
    weight = take(name)
    assert weight is not None, name
    return weight


def _silu(x: Array) -> Array:
    made: Array = x / (1 + np.exp(-x))
    return made
