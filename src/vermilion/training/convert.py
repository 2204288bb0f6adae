"""From a causal base and a recipe to a block-diffusion model, by one of the recipe's methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vermilion.errors import ConfigError, ModelFileError
from vermilion.models import adapters, catalog
from vermilion.models.build import build
from vermilion.models.catalog import ModelFiles
from vermilion.models.configuration import spec_of
from vermilion.models.draft_head import DraftHead
from vermilion.models.families import ModelSpec, Traits
from vermilion.training import toy
from vermilion.training.distributed import joined
from vermilion.training.export import write_model
from vermilion.training.loop import OnStep, train
from vermilion.training.opening import dataset_of, device_of, dtype_of
from vermilion.training.recipe import CONVERSIONS, PROJECTIONS, Recipe
from vermilion.training.run import AdapterMetadata, Progress, Run


def with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe, with those of the objective that its method needs where it leaves them out.

    Only a frozen causal base can teach; weights that clean rows share forget the language unless the next
    token is trained along (arXiv 2607.05722), for which a row must not see it.
    """
    tied, context = given.get("method") == "tied", given.get("context", "causal")
    shift = str(given.get("shift", True)).lower() == "true"
    ours: dict[str, float] = {}
    if tied or context != "causal":
        ours["teacher"] = 0.0
    if tied and (context == "causal" or (context == "block" and shift)):
        ours["next_token"] = 1.0
    return {**given, "objective": {**ours, **given.get("objective", {})}}


def convert(recipe: Recipe, on_step: OnStep = lambda figures: None) -> tuple[Path, Progress]:
    """Train the recipe's denoiser and write OUTPUT/model, a folder that every command takes as a model.

    Returns that folder and where the run stopped. Raises ConfigError for a recipe, ModelFileError for a
    base that cannot be converted.
    """
    if recipe.method not in CONVERSIONS:
        raise ConfigError(f"method {recipe.method} is one of `vermilion train`; allowed here: {CONVERSIONS}.")
    world = joined()
    if recipe.base == "toy":
        if world.is_first:
            toy.make(recipe.output, recipe.seed)
        world.wait()
        recipe = replace(recipe, **toy.make(recipe.output, recipe.seed))
    found = catalog.find(recipe.base)
    if recipe.method == "draft_head" and recipe.adapter is None:
        recipe = replace(recipe, adapter=_own_denoiser(found))
    files = replace(found, adapter=None)
    run = prepare(recipe, files)
    progress = train(run, on_step)
    return write_model(run, files, world), progress


def prepare(recipe: Recipe, files: ModelFiles) -> Run:
    """The base with a denoiser that starts as the base itself, and the opened data."""
    device, goes_on = device_of(recipe), recipe.method in ("adapter", "draft_head")
    start = replace(files, adapter=recipe.adapter if goes_on else None)
    spec = spec_of(start)
    traits = _traits(recipe, spec)
    model = build(start, torch.float32, device).model
    model.drafter = None  # it reads another base's states, or is trained by itself
    facts, own = {"base": files.base.name}, adapters.rank_and_scale(model, adapters.DENOISER)
    rank, alpha = (own[0], own[0] * own[1]) if own else (recipe.rank, recipe.alpha)
    adapter = AdapterMetadata(rank, alpha, traits, files.name, dtype_of(recipe), recipe.longest_block, facts)
    if recipe.method == "adapter" and own is None:
        pairs = adapters.fresh_pairs(model, rank, PROJECTIONS, recipe.seed)
        adapters.attach(model, adapters.DENOISER, adapters.lora(model, pairs, adapter.scale, folded=True))
    if recipe.method == "draft_head" and model.draft_head is None:
        head = DraftHead.fresh(model.architecture.hidden_size, recipe.rank, recipe.seed)
        model.draft_head = head.to(device)
    if recipe.method == "copy":
        adapters.attach(model, adapters.DENOISER, adapters.copy(model))
    if model.mask_embedding is None:
        model.mask_embedding = torch.nn.Parameter(model.embedding.part_weight(0).detach().mean(0))
    return Run(model, dataset_of(recipe, files, spec), recipe, adapter)


def _own_denoiser(files: ModelFiles) -> Path:
    if files.adapter is None:
        raise ConfigError(
            f"adapter: {files.name} has no denoiser of its own, and a draft head needs one; name its folder."
        )
    return files.adapter


def _traits(recipe: Recipe, spec: ModelSpec) -> Traits:
    base = spec.traits
    mask = recipe.mask_token_id if recipe.mask_token_id >= 0 else base.mask_token_id
    if base.context != "causal" or not base.shift:
        raise ModelFileError(f"{recipe.base} is a diffusion model already; a causal base is converted.")
    if not 0 <= mask < spec.architecture.vocab_size:
        raise ConfigError(
            f"mask_token_id: {recipe.base} has no mask token; name an unused token of its vocabulary, "
            f"0 to {spec.architecture.vocab_size - 1}."
        )
    grid = recipe.stages[-1].block_length if recipe.context == "block" else 0
    gated = recipe.method != "tied"
    return Traits(recipe.context, recipe.shift, mask, base.eos_token_ids, block_grid=grid, gated=gated)
