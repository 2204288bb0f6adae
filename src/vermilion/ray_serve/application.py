"""The Ray Serve application: one deployment that answers HTTP, one of engines for each model."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from vermilion.ray_serve.engine_handle import EngineHandle
from vermilion.ray_serve.engine_replica import EngineReplica
from vermilion.ray_serve.ingress import IngressApp
from vermilion.ray_serve.prefix_router import PrefixRouter
from vermilion.ray_serve.replica_backend import ReplicaBackend
from vermilion.ray_serve.replica_models import (
    KnownModel,
    engine_settings,
    open_replica,
    read_model,
    settings_of,
)
from vermilion.serving.backend import Served
from vermilion.serving.model_pool import ModelPool
from vermilion.serving.pooled_model import Opened
from vermilion.serving.settings import Settings

NAME = "vermilion"
INGRESS = "ingress"

_LOGGING = LoggingConfig(enable_access_log=False)
"""The service logs its requests itself."""

_OBJECT_STORE_BYTES = 200 * 1024**2
"""Of a cluster on this machine alone; answers do not pass through it."""

_MOST_CONNECTIONS = 10_000
_KEEP_ALIVE_S = 75
_LAST_FRAMES_S = 7
"""What the ingress gets beyond `serve.drain_timeout_s`, after which engines are stopped."""


@dataclass(frozen=True, slots=True)
class ModelAccess:
    """How models are had; tests put others in its place."""

    open: Callable[[Settings, str], Opened] = open_replica
    """In the process of a replica."""
    read: Callable[[Settings, str], KnownModel] = read_model
    """In that of the ingress: what is known of a model without its weights."""


class Ingress:
    """Made by Serve, in a process of its own."""

    def __init__(
        self, settings: Settings, engines: Mapping[str, DeploymentHandle], access: ModelAccess
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._access = access

    def __serve_build_asgi_app__(self) -> IngressApp:
        return IngressApp(self._settings.serve, self._models)

    @asynccontextmanager
    async def _models(self) -> AsyncIterator[ModelPool]:
        yield ModelPool.of(*(self._served(name, handle) for name, handle in self._engines.items()))

    def _served(self, name: str, handle: DeploymentHandle) -> Served:
        settings = self._settings
        known = self._access.read(settings, name)
        adapters = dict(settings.adapters) if name == settings.model else {}
        wait_s = settings.serve.model_wait_s
        backend = ReplicaBackend(EngineHandle(handle), known.info, adapters, wait_s)
        return Served(backend, known.tokenizer, known.template, name)


def build(args: Mapping[str, Any]) -> serve.Application:
    """What a Serve config file imports; its `args` are those of `vermilion serve --config`, and
    VERMILION_ACCOUNTS. Raises `ConfigError`."""
    return application(settings_of(args))


def application(settings: Settings, access: ModelAccess = ModelAccess()) -> serve.Application:
    """The deployments of one service."""
    engines = {name: _engines(settings, name, access) for name in settings.names}
    ingress = serve.deployment(
        name=INGRESS,
        num_replicas=settings.ray.ingress_replicas,
        logging_config=_LOGGING,
        max_ongoing_requests=_MOST_CONNECTIONS,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=settings.serve.drain_timeout_s + _LAST_FRAMES_S,
        # It takes no processor that an engine needs: the next one starts before the last one goes.
        max_surge_percent=100,
    )(serve.ingress()(Ingress))
    return ingress.bind(settings, engines, access)


def _engines(settings: Settings, name: str, access: ModelAccess) -> serve.Application:
    engine, spread = engine_settings(settings), settings.ray
    least = spread.min_replicas if name == settings.model else 0
    number: dict[str, Any] = {"num_replicas": spread.max_replicas}
    if least < spread.max_replicas:
        number = {
            "autoscaling_config": {
                "min_replicas": least,
                "initial_replicas": least,
                "max_replicas": spread.max_replicas,
                "target_ongoing_requests": spread.target_requests,
                "upscale_delay_s": spread.upscale_delay_s,
                "downscale_delay_s": spread.downscale_delay_s,
            }
        }
    router = RequestRouterConfig(
        request_router_class=PrefixRouter, request_router_kwargs={"imbalance": spread.imbalance}
    )
    return serve.deployment(
        name=f"engine-{name.replace('/', '-')}",
        logging_config=_LOGGING,
        max_ongoing_requests=engine.max_running + engine.max_waiting,
        max_queued_requests=engine.max_waiting,
        ray_actor_options={"num_cpus": float(engine.threads), "num_gpus": spread.gpus},
        graceful_shutdown_timeout_s=settings.serve.drain_timeout_s,
        graceful_shutdown_wait_loop_s=1,
        health_check_period_s=5,
        request_router_config=router,
        **number,
    )(EngineReplica).bind(partial(access.open, settings, name), spread.max_adapters)


def run(settings: Settings, opened: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then drains. Joins the cluster of RAY_ADDRESS; without it starts one of
    this machine."""
    own = not os.environ.get("RAY_ADDRESS")
    stop = threading.Event()
    if own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, log_to_driver=True)
    else:
        ray.init(address="auto")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    host, port = settings.serve.host, settings.serve.port
    serve.start(http_options=HTTPOptions(host=host, port=port, keep_alive_timeout_s=_KEEP_ALIVE_S))
    opened(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    serve.run(application(settings), name=NAME, route_prefix="/")
    stop.wait()
    serve.shutdown()
    ray.shutdown()
