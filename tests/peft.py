"""Random adapters on disk, as PEFT writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from vermilion.models.build import expected_shapes
from vermilion.models.families import Architecture

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write(
    folder: Path,
    architecture: Architecture,
    rank: int,
    projections: Sequence[str] = ALL,
    *,
    seed: int = 0,
    size: float = 0.2,
) -> Path:
    """An adapter of `rank` with alpha 2 x rank; `size` is the standard deviation of its entries."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in expected_shapes(architecture).items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] not in projections:
            continue
        for side, sides in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
            values = torch.randn(sides, generator=generator, dtype=torch.float64) * size
            tensors[f"base_model.model.{module}.lora_{side}.weight"] = values
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(projections)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
