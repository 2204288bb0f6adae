"""A LoRA as PEFT writes it: adapter_config.json and adapter_model.safetensors in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vermilion.errors import ModelFileError
from vermilion.models.lora import Pair
from vermilion.models.tensor_files import Shape, check_shapes
from vermilion.models.weights import TensorFolder
from vermilion.text import read_json

PEFT_PREFIX = "base_model.model."


def read_pairs(
    folder: Path, projections: Mapping[str, Shape], dtype: torch.dtype, device: torch.device | str
) -> tuple[dict[str, Pair], float]:
    """({module: (A_RI, B_OR)}, alpha / rank) for some of the model's projections, {module: (O, I)}.

    Raises ModelFileError, naming the tensor, where it does not fit them.
    """
    rank, alpha = _rank_and_alpha(folder)
    source = TensorFolder(folder, "adapter_model")
    given, wanted = source.shapes(), dict[str, Shape]()
    for name in given:
        module, side = _place(name)
        if module not in projections or side not in ("A", "B"):
            raise ModelFileError(f"{folder}: tensor {name!r} fits no projection of this model.")
        num_out, num_in = projections[module]
        wanted[name] = (rank, num_in) if side == "A" else (num_out, rank)
    check_shapes(folder, given, wanted)
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in source.read(dtype, device):
        module, side = _place(name)
        pairs.setdefault(module, {})[side] = tensor
    halves = sorted(module for module, pair in pairs.items() if len(pair) != 2)
    if halves or not pairs:
        raise ModelFileError(
            f"{folder}: no full lora_A and lora_B pair for {', '.join(halves) or 'any module'}."
        )
    return {module: (pair["A"], pair["B"]) for module, pair in pairs.items()}, alpha / rank


def _rank_and_alpha(folder: Path) -> tuple[int, float]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise ModelFileError(f"{path} is missing.")
    config = read_json(path)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    unsupported = [
        key for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern") if config.get(key)
    ]
    if config.get("peft_type") != "LORA" or not rank or not alpha or unsupported:
        raise ModelFileError(
            f"{folder}: only a plain LoRA with one rank and alpha is read; given peft_type "
            f"{config.get('peft_type')!r}, r {rank!r}, lora_alpha {alpha!r}"
            + (f", and {', '.join(unsupported)}." if unsupported else ".")
        )
    return rank, alpha


def _place(name: str) -> tuple[str, str]:
    """(module, A or B) of a tensor."""
    module, _, side = name.removeprefix(PEFT_PREFIX).removesuffix(".weight").rpartition(".lora_")
    return module, side
