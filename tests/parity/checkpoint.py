"""Tiny checkpoints in published layouts, every number from a counter: the same on any machine.

A golden case is a JSON file: the config and the tensors' names and shapes as their publisher's code has them,
token ids, and where the logits come from. The logits lie beside it; the weights are made here.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Golden:
    """What a publisher's code computes with a checkpoint that `write` makes."""

    name: str
    family: str
    checkpoint: str
    """The folder's name, by which some families are told apart."""
    reference: str
    """owner/repository@commit of the code that computed the logits."""
    versions: str
    """Of the libraries that it ran with."""
    seed: int
    config: dict[str, Any]
    tensors: dict[str, list[int]]
    cases: dict[str, dict[str, Any]]
    """Name to `ids`, and `start`: from which row on there are logits."""
    note: str = ""
    context: str = ""
    """What settled text sees, where that is not what its traits say."""
    scales: dict[str, float] = field(default_factory=dict)
    """What tensors are multiplied by, so that logits stay near one where embeddings are tied."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """What its samplers answer at temperature 0: `decoder` and its settings, `prompt`, `tokens`."""

    def logits(self) -> dict[str, Tensor]:
        """Case to [rows, V]."""
        return load_file(FOLDER / f"{self.name}.safetensors")


def read(path: Path) -> Golden:
    return Golden(**json.loads(path.read_text(encoding="utf-8")))


def goldens() -> list[Golden]:
    return [read(path) for path in sorted(FOLDER.glob("*.json"))]


def numbers(name: str, shape: list[int], seed: int) -> NDArray[np.float32]:
    """24 random bits each, so that they are exact; of a scale that keeps activations near one."""
    bits = np.random.Philox(key=[seed, zlib.crc32(name.encode())]).random_raw(math.prod(shape)) >> 40
    uniform = (bits.astype(np.float32) / np.float32(1 << 23) - np.float32(1)).reshape(shape)
    if len(shape) > 1:
        # Kernels of convolutions stand beside a residual.
        fan_in = 1 if "embed" in name or "wte" in name else 30 if "conv" in name else shape[-1]
        return uniform * np.float32(math.sqrt(3 / fan_in))
    plain = name.endswith("bias") or ("norm" not in name and "ln_f" not in name)
    return np.float32(0.1 if name.endswith("inv_freq") else 0.4) * uniform + np.float32(0 if plain else 1)


def tensors(golden: Golden) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(numbers(name, shape, golden.seed)) * golden.scales.get(name, 1.0)
        for name, shape in golden.tensors.items()
    }


def write(golden: Golden, folder: Path) -> Path:
    """The checkpoint, under `folder`."""
    path = folder / golden.checkpoint
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(golden.config))
    (path / "tokenizer.json").write_text("{}")
    save_file(tensors(golden), path / "model.safetensors")
    return path
