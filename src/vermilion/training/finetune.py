"""From a finished model and examples to an adapter (or a whole model) that answers as they do."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vermilion.errors import ConfigError
from vermilion.models import adapters, catalog
from vermilion.models.build import build
from vermilion.models.catalog import ModelFiles
from vermilion.models.configuration import spec_of
from vermilion.training.distributed import World, joined
from vermilion.training.export import settle, write_adapter, write_model
from vermilion.training.loop import OnStep, train
from vermilion.training.opening import dataset_of, device_of, dtype_of
from vermilion.training.recipe import TUNINGS, Recipe
from vermilion.training.run import TUNED, AdapterMetadata, Progress, Run

DEFAULTS: Mapping[str, Any] = {
    "base": "smollm2-135m-diffusion",
    "method": "lora",
    "rank": 16,
    "alpha": 32.0,
    "epochs": 2.0,
    "rows": 4,
    "micro_rows": 2,
    "learning_rate": 1e-3,
    "warmup_steps": 5,
    "decay_share": 0.8,
    "validate_every": 20,
    "save_every": 50,
    "autocast": True,
    "objective": {"next_token": 1.0, "denoise": 0.0, "teacher": 0.0},
    "data": {"length": 0, "held_out": -1},
    "stages": [{"until": 1.0, "block_length": 8}],
}
"""Settings of `vermilion train` that a recipe or an option may change."""


def with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe file over `DEFAULTS`, table by table."""
    mixed: dict[str, Any] = {}
    for name in DEFAULTS.keys() | given.keys():
        ours, theirs = DEFAULTS.get(name), given.get(name, DEFAULTS.get(name))
        both = isinstance(ours, Mapping) and isinstance(theirs, Mapping)
        mixed[name] = {**ours, **theirs} if both else theirs  # type: ignore[dict-item]
    return mixed


def tune(recipe: Recipe, on_step: OnStep = lambda figures: None) -> tuple[Path, Progress]:
    """Train, and write OUTPUT/adapter (method lora) or OUTPUT/model (method full, or with `merge`).

    Returns the folder to serve, the adapter where there is one, and where the run stopped. Raises
    ConfigError for a recipe or for examples, with every bad line; ModelFileError for the base's files.
    """
    if recipe.method not in TUNINGS:
        raise ConfigError(f"method {recipe.method} is one of `vermilion convert`; allowed here: {TUNINGS}.")
    world = joined()
    files = catalog.find(recipe.base)
    run = prepare(recipe, files)
    progress = train(run, on_step)
    if recipe.method == "full":
        return write_model(run, files, world), progress
    if recipe.merge:
        write_model(run, files, world)
    return _write_adapter(run, world), progress


def prepare(recipe: Recipe, files: ModelFiles) -> Run:
    """The model with its denoiser, and a LoRA on it where that is what is trained; the opened data."""
    device = device_of(recipe)
    spec = spec_of(files)
    traits = spec.traits
    recipe = replace(recipe, context=traits.context, shift=traits.shift)
    if spec.is_autoregressive and recipe.objective.denoise:
        raise ConfigError(f"{recipe.base} has no denoiser; convert it first, or set objective.denoise to 0.")
    model = build(files, torch.float32, device).model
    model.drafter = None  # nothing here trains it
    rank, scale = recipe.rank, recipe.alpha / recipe.rank
    if model.mask_embedding is None and traits.mask_token_id >= 0:
        # In training a mask is known by its flag, not by its id.
        model.mask_embedding = torch.nn.Parameter(
            model.embedding.part_weight(0)[traits.mask_token_id].detach().clone()
        )
    if recipe.method == "lora":
        pairs = adapters.fresh_pairs(model, rank, recipe.target_modules, recipe.seed)
        if recipe.adapter is not None:
            pairs, scale = adapters.read_pairs(recipe.adapter, model)
            rank = next(iter(pairs.values()))[0].shape[0]
        adapters.attach(model, TUNED, adapters.lora(model, pairs, scale))
    elif own := adapters.rank_and_scale(model, adapters.DENOISER):
        rank, scale = own
    adapter = AdapterMetadata(rank, scale * rank, traits, files.name, dtype_of(recipe))
    return Run(model, dataset_of(recipe, files, spec), recipe, adapter)


def _write_adapter(run: Run, world: World) -> Path:
    draft = run.recipe.output / f".adapter.{world.rank}.partial"
    shutil.rmtree(draft, ignore_errors=True)
    write_adapter(draft, run)
    return settle(draft, run.recipe.output / "adapter", world)
