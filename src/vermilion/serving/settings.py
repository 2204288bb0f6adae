"""What a service is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vermilion.config import EngineConfig
from vermilion.models.catalog import DEFAULT_MODEL
from vermilion.serving.ray_config import RayConfig
from vermilion.serving.remote.upstream_config import UpstreamConfig
from vermilion.serving.serve_config import ServeConfig


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration file of the service: `model`, `models` and the tables [serve] and [engine]."""

    model: str = DEFAULT_MODEL
    """Answers requests that name none; loaded before the first of them."""
    serve: ServeConfig = field(default_factory=ServeConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    upstream: UpstreamConfig = field(default_factory=UpstreamConfig)
    """Where the model runs, if not here."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """Folders in PEFT's layout, by the names under which they are served, of the first model."""
    models: tuple[str, ...] = ()
    """Further ones, loaded when they are asked for."""
    ray: RayConfig = field(default_factory=RayConfig)
    """How the service is spread, where Ray Serve runs it."""

    @property
    def names(self) -> tuple[str, ...]:
        """All models, the default first."""
        return tuple(dict.fromkeys((self.model, *self.models)))
