"""How a service is spread over a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass

from vermilion.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RayConfig:
    """Settings of `vermilion serve --ray`; the first four hold for each model. Raises `ConfigError`."""

    min_replicas: int = 1
    """Engines of the default model that always run; further models start when they are asked for."""
    max_replicas: int = 1
    """Above `min_replicas`, their number follows the requests that run and wait."""
    cpus: float = 0.0
    """Of one replica; 0: `engine.threads`, or one."""
    gpus: float = 0.0
    """Of one replica."""
    target_requests: float = 16.0
    """Running and waiting requests per replica that autoscaling aims at."""
    upscale_delay_s: float = 10.0
    downscale_delay_s: float = 300.0
    """How long there must be more, or fewer, requests before replicas come, or go."""
    ingress_replicas: int = 1
    """Processes that answer HTTP. Stored responses, files, jobs and console sessions are those of one."""
    max_adapters: int = 8
    """Adapters that one replica holds; the one used longest ago goes first."""
    imbalance: int = 8
    """A replica that has seen a prompt's beginning is chosen unless it has so many requests more than the one
    with the fewest."""

    def __post_init__(self) -> None:
        least = {"min_replicas": 0, "max_replicas": 1, "cpus": 0, "gpus": 0, "ingress_replicas": 1}
        least |= {"max_adapters": 1, "imbalance": 0, "upscale_delay_s": 0, "downscale_delay_s": 0}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise ConfigError(f"ray.{name}: {getattr(self, name)} is too small; the least is {limit}.")
        if self.max_replicas < self.min_replicas:
            raise ConfigError(
                f"ray.max_replicas: {self.max_replicas} is below ray.min_replicas, {self.min_replicas}."
            )
        if self.target_requests <= 0:
            raise ConfigError(
                f"ray.target_requests: {self.target_requests} is not allowed; give more than 0."
            )
