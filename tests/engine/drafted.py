"""A tiny model with a drafter, in float64, and an engine over it."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests import tiny
from vermilion.config import EngineConfig
from vermilion.engine.engine import Engine
from vermilion.engine.loading import assemble
from vermilion.models.drafter import Drafter, DrafterShape
from vermilion.models.families import FAMILIES, ModelSpec
from vermilion.models.transformer import Transformer

ARCHITECTURE = replace(tiny.ARCHITECTURE, num_layers=4)
SHAPE = DrafterShape.of(ARCHITECTURE, num_layers=2, block_length=4, rank=6, window=12)
SPEC = ModelSpec(
    "tiny-drafted", ARCHITECTURE, replace(tiny.TRAITS["causal-shift"], drafter=4, gated=False), FAMILIES[0]
)


def randomize(module: torch.nn.Module, generator: torch.Generator) -> None:
    for name, parameter in module.named_parameters():
        if "norm" in name:
            parameter.data.fill_(1.0)
        else:
            parameter.data.normal_(0, 0.5, generator=generator)


def model(*, drafter: bool = True) -> Transformer:
    """Half of the tokens cannot be guessed."""
    built, generator = Transformer(ARCHITECTURE).double(), torch.Generator().manual_seed(0)
    randomize(built, generator)
    if drafter:
        built.drafter = Drafter(ARCHITECTURE, SHAPE, torch.arange(0, tiny.MASK, 2)).double()
        randomize(built.drafter, generator)
    return built


def engine(built: Transformer, **settings: object) -> Engine:
    sizes = {"kv_tokens": 1024, "page_size": 8, "dtype": "float64", **settings}
    spec = SPEC if built.drafter is not None else replace(SPEC, traits=replace(SPEC.traits, drafter=0))
    return assemble(built, spec, tiny.Letters(), EngineConfig(**sizes))  # type: ignore[arg-type]
