"""The values of a training run and its progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vermilion.data.packing import Dataset, DataState
from vermilion.models.adapters import DENOISER
from vermilion.models.families import Traits
from vermilion.models.transformer import Transformer
from vermilion.training.recipe import Method, Recipe

TUNED = "tuned"
"""The adapter that fine-tuning trains, on every row."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    data: DataState = field(default_factory=DataState)
    best: float | None = None
    """Lowest held-out figure so far."""
    best_step: int = 0
    since_best: int = 0
    """Validations after it."""


@dataclass(frozen=True, slots=True)
class AdapterMetadata:
    """The metadata that is written beside an adapter's tensors."""

    rank: int
    alpha: float
    traits: Traits
    base: str
    dtype: torch.dtype
    block_length: int = 0
    """Longest block of the training."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of denoiser.json."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class Run:
    """What a training run works on."""

    model: Transformer
    """On its device, with all that is to be trained attached."""
    dataset: Dataset
    recipe: Recipe
    adapter: AdapterMetadata


def trainable(model: Transformer, method: Method) -> dict[str, nn.Parameter]:
    """The parameters that the method trains, by name."""
    marks = {
        "adapter": ("mask_embedding", f".adapters.{DENOISER}."),
        "copy": ("mask_embedding", f".adapters.{DENOISER}."),
        "draft_head": ("draft_head.",),
        "lora": (f".adapters.{TUNED}.",),
    }.get(method, ("",))
    return {
        name: parameter for name, parameter in model.named_parameters() if any(mark in name for mark in marks)
    }
