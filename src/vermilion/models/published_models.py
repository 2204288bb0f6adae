"""The catalogue of published checkpoints: catalogue.toml as data, and what follows from it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vermilion.config import build
from vermilion.models.families import AUTOREGRESSIVE, FAMILIES, Architecture, Experts, Family, LayerKind
from vermilion.models.families.family_presets import default_preset, presets_for
from vermilion.models.memory import Format, cache_bytes_per_token, num_parameters, weight_bytes

FILE = Path(__file__).parent / "catalogue.toml"
_UNITS = {"M": 10**6, "B": 10**9}
_BITS: dict[Format, float] = {"q4": 5.0, "q8": 8.5, "bf16": 16.0, "float32": 32.0}
"""Bits of a weight, scales included."""


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """One row. What is empty or 0 could not be verified."""

    name: str
    repository: str
    """On the model hub, owner and name."""
    family: str
    revision: str = ""
    """The commit that was looked at; empty: whatever is newest when it is pulled."""
    shape: str = ""
    size: str = ""
    """Parameters as published, such as 8B, where the shape is not known."""
    licence: str = ""
    context_length: int = 0
    size_gb: float = 0.0
    """Of the published weights, in 10^9 bytes."""
    about: str = ""

    @property
    def architecture(self) -> Architecture | None:
        """The sizes that memory depends on; None where the shape is not known."""
        return _architecture(self.shape, self.context_length) if self.shape else None

    @property
    def num_parameters(self) -> int:
        architecture = self.architecture
        if architecture is not None:
            return num_parameters(architecture)
        return int(float(self.size[:-1]) * _UNITS[self.size[-1]]) if self.size else 0

    def weight_bytes(self, kind: Format) -> int:
        """Exact for a known shape, else from the published number of parameters."""
        architecture = self.architecture
        if architecture is not None:
            return weight_bytes(architecture, kind)
        return int(self.num_parameters * _BITS[kind] / 8)

    def cache_bytes_per_token(self, kind: Format) -> int:
        """0 where the shape is not known."""
        architecture = self.architecture
        return 0 if architecture is None else cache_bytes_per_token(architecture, kind)

    def memory_bytes(self, kind: Format, num_tokens: int) -> int:
        """Of the weights and a key-value cache for so many positions."""
        return self.weight_bytes(kind) + num_tokens * self.cache_bytes_per_token(kind)

    @property
    def family_row(self) -> Family | None:
        return next((family for family in FAMILIES if family.name == self.family), None)

    @property
    def obstacle(self) -> str:
        """Why this version cannot run it, in words; empty if it can."""
        family, architecture = self.family_row, self.architecture
        if family is None:
            return f"models of family {self.family} are not read"
        needs = list(architecture.beyond_backbone()) if architecture is not None else []
        return f"the backbone does not compute {', '.join(needs)}" if needs else ""

    @property
    def default_preset(self) -> str:
        """Empty for a family that is not read."""
        family = self.family_row
        if family is None:
            return ""
        return family.default_preset or default_preset(
            family.presets or presets_for(family.traits or AUTOREGRESSIVE)
        )


@cache
def published_models() -> Mapping[str, PublishedModel]:
    """Every row by its name."""
    rows = [build(PublishedModel, row, "catalogue") for row in _read()["models"]]
    return {row.name: row for row in rows}


@cache
def _read() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


@cache
def _architecture(shape: str, context_length: int) -> Architecture:
    given = dict(_read()["shapes"][shape])
    num_dense, experts = given.pop("dense_layers", 0), given.pop("experts", None)
    layers: tuple[LayerKind, ...] = ()
    if experts is not None:
        routed = LayerKind(experts=Experts(**experts), dense=False)
        layers = tuple(LayerKind() if i < num_dense else routed for i in range(given["num_layers"]))
    return Architecture(**given, context_length=context_length, layers=layers)
