"""A run on disk: the complete state, so that resuming equals never having stopped, and the adapter to serve.

RUN/checkpoints/0000120/   state.safetensors (parameters as trained, optimiser, RNG), state.json (where the
                           run stands, its recipe), adapter/ (PEFT's LoRA names, for models/weights.py)

A folder appears under its final name only once it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vermilion.data.packing import DataState
from vermilion.errors import ConfigError, ModelFileError
from vermilion.text import read_json
from vermilion.training.distributed import World, like, whole
from vermilion.training.drafter_recipe import DrafterRecipe
from vermilion.training.export import write_adapter
from vermilion.training.recipe import MAY_CHANGE, Recipe
from vermilion.training.run import Progress, Run, trainable

_RNG = "rng"
_BEST = "best.safetensors"


def save(run: Run, optimizer: torch.optim.AdamW, progress: Progress, world: World) -> None:
    """Write the checkpoint of this step to OUTPUT/checkpoints, then remove all but the last two.

    Every process must call it; the first one writes.
    """
    named = trainable(run.model, run.recipe.method)
    tensors = {f"parameter.{name}": whole(parameter.detach()) for name, parameter in named.items()}
    for name, parameter in named.items():
        for kind, value in optimizer.state[parameter].items():
            tensors[f"{kind}.{name}"] = whole(value)
    tensors[_RNG] = torch.get_rng_state()
    folder = run.recipe.output / "checkpoints"
    target = folder / f"{progress.step:07d}"
    # Of sharded tensors every process must gather its part, so each writes the adapter, all but one in vain.
    partial = folder / f".{target.name}.{world.rank}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if run.recipe.method not in ("tied", "full"):
        write_adapter(partial / "adapter", run)
    if world.is_first:
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, partial / "state.safetensors"
        )
        state = {"progress": asdict(progress), "recipe": settings(run.recipe)}
        (partial / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        _settle(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
        for old in _whole(folder)[:-2]:
            shutil.rmtree(old)
    else:
        shutil.rmtree(partial)
    world.wait()


def save_best(run: Run, world: World) -> None:
    """Keep the parameters as they are now beside the checkpoints; every process must call it."""
    tensors = {
        name: whole(parameter.detach()).contiguous()
        for name, parameter in trainable(run.model, run.recipe.method).items()
    }
    if world.is_first:
        draft = run.recipe.output / f".{_BEST}"
        save_file(tensors, draft)
        draft.replace(run.recipe.output / _BEST)


def load_best(run: Run) -> None:
    """Put the parameters that `save_best` kept back."""
    _place(load_tensors(run.recipe.output / _BEST), run)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    return next(iter(_whole(folder)[::-1]), None)


def recipe_of(checkpoint: Path) -> dict[str, Any]:
    """The settings that the checkpoint was trained with."""
    recipe = read_json(checkpoint / "state.json").get("recipe", {})
    return dict(recipe)


def load(checkpoint: Path, run: Run, optimizer: torch.optim.AdamW) -> Progress:
    """Put the trained parameters, `optimizer` and torch's RNG where they were; raises ModelFileError."""
    tensors = load_tensors(checkpoint / "state.safetensors")
    _place({name.removeprefix("parameter."): tensor for name, tensor in tensors.items()}, run)
    for name, parameter in trainable(run.model, run.recipe.method).items():
        if f"step.{name}" in tensors:
            # AdamW keeps its step count on the CPU, the averages beside the parameter.
            optimizer.state[parameter] = {
                "step": tensors[f"step.{name}"],
                **{kind: like(tensors[f"{kind}.{name}"], parameter) for kind in ("exp_avg", "exp_avg_sq")},
            }
    torch.set_rng_state(tensors[_RNG])
    saved = read_json(checkpoint / "state.json")["progress"]
    data = saved.pop("data")
    cursors = tuple((epoch, index, used) for epoch, index, used in data["cursors"])
    return Progress(**saved, data=DataState(data["rows"], cursors))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Raises ModelFileError for a file that is damaged or missing."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"{path}: not a sound safetensors file ({error}).") from error


def settings(recipe: Recipe | DrafterRecipe) -> dict[str, Any]:
    """The recipe as JSON holds it."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(recipe), default=str))
    return plain


def _place(tensors: Mapping[str, Tensor], run: Run) -> None:
    for name, parameter in trainable(run.model, run.recipe.method).items():
        given = tensors.get(name)
        if given is None or given.shape != parameter.shape:
            raise ModelFileError(
                f"{run.recipe.output}: what is saved there holds no {name} of shape {list(parameter.shape)}."
            )
        with torch.no_grad():
            parameter.copy_(like(given, parameter))


def _settle(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                os.fsync(file.fileno())


def check_same_recipe(
    checkpoint: Path, recipe: Recipe | DrafterRecipe, may_change: Collection[str] = MAY_CHANGE
) -> None:
    """Raises ConfigError when the checkpoint is of another recipe, naming the settings that differ."""
    known, now = recipe_of(checkpoint), settings(recipe)
    names = sorted(
        name
        for name in known.keys() | now.keys()
        if known.get(name) != now.get(name) and name not in may_change
    )
    if names:
        raise ConfigError(
            f"{checkpoint.parent}: holds a run with other settings ({', '.join(names)}). "
            "Name another output folder, or delete this one to start over."
        )


def _whole(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())
