"""What is known of a model before it is loaded: as `vermilion models` and /v1/catalogue tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vermilion.config import EngineConfig
from vermilion.errors import VermilionError
from vermilion.models import catalog, machine
from vermilion.models.catalog import CatalogEntry
from vermilion.models.configuration import spec_of
from vermilion.models.families import ModelSpec
from vermilion.models.memory import FORMATS, Format, cache_bytes_per_token, num_parameters, weight_bytes
from vermilion.models.published_models import PublishedModel

_USABLE = 0.9
"""Share of the memory that a model may take; the rest is the system's and the buffers of a pass."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Empty, 0 and None stand for what is not known."""

    name: str
    pulled: bool
    size_bytes: int
    description: str = ""
    licence: str = ""
    repository: str = ""
    revision: str = ""
    family: str = ""
    num_parameters: int = 0
    context_length: int = 0
    default_preset: str = ""
    obstacle: str = ""
    """Why this version cannot run it, in words."""
    memory_bytes: Mapping[Format, int] = field(default_factory=dict)
    """Of the weights and a key-value cache of the engine's default size, by the format of the weights."""
    cache_bytes_per_token: int = 0

    def fits(self, kind: Format) -> bool | None:
        """Whether this machine has the memory: a GPU's for bf16 where there is one."""
        gpu = machine.gpu_memory_bytes() if kind == "bf16" else 0
        room, needed = gpu or machine.memory_bytes(), self.memory_bytes.get(kind, 0)
        return needed <= _USABLE * room if needed and room else None

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "repository": self.repository or None,
            "revision": self.revision or None,
            "family": self.family or None,
            "parameters": self.num_parameters or None,
            "licence": self.licence or None,
            "context_length": self.context_length or None,
            "description": self.description,
            "default_preset": self.default_preset or None,
            "supported": not self.obstacle,
            "reason": self.obstacle or None,
            "memory_bytes": dict(self.memory_bytes),
            "cache_bytes_per_token": self.cache_bytes_per_token or None,
            "fits": {kind: self.fits(kind) for kind in self.memory_bytes},
            "on_disk": self.pulled,
            "size_bytes": self.size_bytes,
        }


def machine_json() -> dict[str, int]:
    return {"memory_bytes": machine.memory_bytes(), "gpu_memory_bytes": machine.gpu_memory_bytes()}


def facts_of(entry: CatalogEntry) -> ModelFacts:
    """From a model's own files where it is on this disk, else from the catalogue."""
    row = entry.published
    known: dict[str, Any] = {} if row is None else _of_row(row)
    known |= {"name": entry.name, "pulled": entry.pulled, "size_bytes": entry.size_bytes}
    known |= {"description": entry.description, "licence": entry.licence}
    if entry.pulled:
        try:
            known |= _of_spec(spec_of(catalog.find(entry.name)))
        except VermilionError as error:
            known |= {"obstacle": str(error)}
    return ModelFacts(**known)


def facts_of_name(name: str) -> ModelFacts:
    """Of a model of the catalogue, or of a folder. Raises as `catalog.find`."""
    entry = next((entry for entry in catalog.available() if entry.name == name), None)
    if entry is not None:
        return facts_of(entry)
    files = catalog.find(name)
    size = sum(path.stat().st_size for path in files.text_folder.iterdir() if path.is_file())
    return ModelFacts(pulled=True, size_bytes=size, **{"name": name, **_of_spec(spec_of(files))})


def _of_row(row: PublishedModel) -> dict[str, Any]:
    num_tokens = EngineConfig().kv_tokens
    memory = {kind: row.memory_bytes(kind, num_tokens) for kind in FORMATS}
    return {
        "repository": row.repository,
        "revision": row.revision or "main",
        "family": row.family,
        "num_parameters": row.num_parameters,
        "context_length": row.context_length,
        "default_preset": row.default_preset,
        "obstacle": row.obstacle,
        "memory_bytes": memory if row.num_parameters else {},
        "cache_bytes_per_token": row.cache_bytes_per_token("bf16"),
    }


def _of_spec(spec: ModelSpec) -> dict[str, Any]:
    a, num_tokens = spec.architecture, EngineConfig().kv_tokens
    cache = {kind: num_tokens * cache_bytes_per_token(a, kind) for kind in FORMATS}
    return {
        "family": spec.family.name,
        "num_parameters": num_parameters(a),
        "context_length": a.context_length,
        "default_preset": spec.default_preset if spec.presets else "",
        "memory_bytes": {kind: weight_bytes(a, kind) + cache[kind] for kind in FORMATS},
        "cache_bytes_per_token": cache_bytes_per_token(a, "bf16"),
    }
