"""A run on disk: everything that makes going on equal to never having stopped, and the adapter to serve.

RUN/checkpoints/0000120/   state.safetensors (parameters as trained, optimiser, RNG), state.json (where the
                           run stands, its recipe), adapter/ (PEFT's LoRA names, for models/weights.py)

A folder appears under its final name only once it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vermilion.errors import ConfigError, ModelFileError
from vermilion.models.families import Traits
from vermilion.models.transformer import PARTS, Transformer
from vermilion.text import read_json
from vermilion.training.data import DataState

_PEFT_PREFIX = "base_model.model."
_RNG = "rng"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    data: DataState = field(default_factory=DataState)


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter's own files say of it."""

    rank: int
    alpha: float
    traits: Traits
    base: str
    dtype: torch.dtype
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of denoiser.json."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def trainable(model: Transformer) -> dict[str, nn.Parameter]:
    """The parameters of the denoiser alone, by name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name == "mask_embedding" or ".lora_" in name
    }


def save(
    folder: Path,
    model: Transformer,
    optimizer: torch.optim.AdamW,
    progress: Progress,
    adapter: Adapter,
    recipe: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of this step, then remove all but the last two; returns its folder."""
    target = folder / f"{progress.step:07d}"
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    named = trainable(model)
    tensors = {f"parameter.{name}": parameter.detach() for name, parameter in named.items()}
    for name, parameter in named.items():
        for kind, value in optimizer.state[parameter].items():
            tensors[f"{kind}.{name}"] = value
    tensors[_RNG] = torch.get_rng_state()
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial / "state.safetensors")
    write_adapter(partial / "adapter", model, adapter)
    state = {"progress": asdict(progress), "recipe": recipe}
    (partial / "state.json").write_text(json.dumps(state, indent=1, default=str), encoding="utf-8")
    for path in partial.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
    for old in _whole(folder)[:-2]:
        shutil.rmtree(old)
    return target


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    return next(iter(_whole(folder)[::-1]), None)


def recipe_of(checkpoint: Path) -> dict[str, Any]:
    """The settings that the checkpoint was trained with."""
    recipe = read_json(checkpoint / "state.json").get("recipe", {})
    return dict(recipe)


def load(checkpoint: Path, model: Transformer, optimizer: torch.optim.AdamW) -> Progress:
    """Put `model`'s denoiser, `optimizer` and torch's RNG where they were; raises ModelFileError."""
    path = checkpoint / "state.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"{path}: not a sound safetensors file ({error}).") from error
    named = trainable(model)
    for name, parameter in named.items():
        given = tensors.get(f"parameter.{name}")
        if given is None or given.shape != parameter.shape:
            raise ModelFileError(f"{path}: holds no {name} of shape {list(parameter.shape)}.")
        parameter.data.copy_(given)
        kinds = ("step", "exp_avg", "exp_avg_sq")
        if f"step.{name}" in tensors:
            # AdamW keeps its step count on the CPU, the averages beside the parameter.
            optimizer.state[parameter] = {
                kind: tensors[f"{kind}.{name}"].to("cpu" if kind == "step" else parameter.device)
                for kind in kinds
            }
    torch.set_rng_state(tensors[_RNG])
    saved = read_json(checkpoint / "state.json")["progress"]
    data = saved["data"]
    cursors = tuple((epoch, index, used) for epoch, index, used in data["cursors"])
    return Progress(saved["step"], saved["tokens"], saved["seconds"], DataState(data["rows"], cursors))


def write_adapter(folder: Path, model: Transformer, adapter: Adapter) -> None:
    """The denoiser under PEFT's LoRA names, as `models.weights.load_adapter` reads it."""
    folder.mkdir(parents=True)
    tensors = adapter_tensors(model, adapter)
    mask = model.mask_embedding
    if mask is None:
        raise ValueError("the model has no mask embedding")
    save_file(tensors, folder / "adapter_model.safetensors")
    save_file({"mask_embedding": mask.detach().float().contiguous()}, folder / "denoiser.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "target_modules": [part.rpartition(".")[2] for parts in PARTS.values() for part in parts],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "base_model_name_or_path": adapter.base,
    }
    denoiser = {
        "context": adapter.traits.context,
        "shift": adapter.traits.shift,
        "gated": adapter.traits.gated,
        "mask_token_id": adapter.traits.mask_token_id,
        **adapter.facts,
    }
    for name, value in (("adapter_config.json", config), ("denoiser.json", denoiser)):
        (folder / name).write_text(json.dumps(value, indent=1), encoding="utf-8")


def adapter_tensors(model: Transformer, adapter: Adapter) -> dict[str, Tensor]:
    """{PEFT name: tensor} in the adapter's dtype; B without the scale that the backbone folds into it."""
    tensors = {}
    for index, layer in enumerate(model.layers):
        for fused, parts in PARTS.items():
            linear = getattr(layer, fused)
            halves = zip(parts, torch.split(linear.lora_a, adapter.rank), linear.lora_b, strict=True)
            for part, a, b in halves:
                stem = f"{_PEFT_PREFIX}model.layers.{index}.{part}"
                tensors[f"{stem}.lora_A.weight"] = a.detach().to(adapter.dtype).contiguous()
                tensors[f"{stem}.lora_B.weight"] = (b.detach() / adapter.scale).to(adapter.dtype).contiguous()
    return tensors


def check_same_recipe(checkpoint: Path, recipe: Mapping[str, Any], may_differ: frozenset[str]) -> None:
    """Raises ConfigError when the checkpoint is of another recipe, naming the settings that differ."""
    known = recipe_of(checkpoint)
    now = json.loads(json.dumps(recipe, default=str))
    names = sorted(
        name
        for name in known.keys() | now.keys()
        if known.get(name) != now.get(name) and name not in may_differ
    )
    if names:
        raise ConfigError(
            f"{checkpoint.parent}: holds a run with other settings ({', '.join(names)}). "
            "Name another output folder, or delete this one to start over."
        )


def _whole(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())
