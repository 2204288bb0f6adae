"""Starts the HTTP service: its settings from a file and the command line, its model on a thread."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vermilion.cli import pulling
from vermilion.cli.options import DEFAULT_MODEL, ServeOptions
from vermilion.config import EngineConfig, load
from vermilion.errors import BadParameter, ModelFileError
from vermilion.models.published_models import published_models
from vermilion.serving.backend import Served
from vermilion.serving.generation import model_names
from vermilion.serving.http import server
from vermilion.serving.model_pool import Described, ModelPool, ModelSource
from vermilion.serving.pooled_model import Opened
from vermilion.serving.remote.upstream_config import UpstreamConfig
from vermilion.serving.serve_config import ServeConfig
from vermilion.types import ModelInfo, Sampling

if TYPE_CHECKING:
    from vermilion.engine.service import Service

WARM_UP_TOKENS = 8


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


_SETTING_OF = {
    "host": "serve.host",
    "port": "serve.port",
    "open": "serve.open",
    "accounts": "serve.accounts.url",
    "memory_budget": "engine.memory_budget",
    "preset": "serve.default_preset",
    "device": "engine.device",
    "dtype": "engine.dtype",
    "backend": "engine.backend",
    "quantize": "engine.quantize",
    "threads": "engine.threads",
    "tensor_parallel": "engine.tensor_parallel",
}


def settings_of(options: ServeOptions) -> Settings:
    """Defaults, then the file, then --set, then the named options. Raises ConfigError and BadParameter."""
    named = {setting: getattr(options, option) for option, setting in _SETTING_OF.items()}
    overrides = [
        f"{setting}={str(value).lower() if isinstance(value, bool) else value}"
        for setting, value in named.items()
        if value is not None
    ]
    settings = load(Settings, options.config, [*(options.set or ()), *overrides])
    if options.upstream:
        settings = replace(settings, upstream=replace(settings.upstream, urls=tuple(options.upstream)))
    asked = options.models or ([options.model] if options.model else [])
    if asked and settings.upstream.urls:
        settings = replace(settings, upstream=replace(settings.upstream, model=asked[0]))
    elif asked:
        settings = replace(settings, model=asked[0], models=tuple(asked[1:]))
    adapters = dict(settings.adapters)
    for given in options.adapter or ():
        name, equals, folder = given.partition("=")
        if not equals or not folder:
            raise BadParameter("--adapter", given, "NAME=FOLDER, such as legal=runs/legal/adapter")
        adapters[name] = Path(folder).expanduser()
    for name in adapters:
        model_names.check_adapter_name(name, settings.model, settings.serve)
    return replace(settings, adapters=adapters)


def serve(options: ServeOptions, opened: Callable[[str], None]) -> None:
    """Serves until a signal; `opened` gets the address once the port is open, before the model is loaded."""
    settings = settings_of(options)
    if not settings.upstream.urls:
        for name in dict.fromkeys((settings.model, *settings.models)):
            pulling.ensure(name, options.offline)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("vermilion").setLevel(logging.INFO)
    server.run(settings.serve, partial(_models, settings), opened)


@asynccontextmanager
async def _models(settings: Settings) -> AsyncIterator[ModelPool]:
    """The models, the first of them loaded; torch is imported, and the weights read, while the port already
    answers."""
    if settings.upstream.urls:
        from vermilion.serving.remote.remote_backend import remote_model

        async with remote_model(settings.upstream) as served:
            yield ModelPool.of(served)
        return
    budget = settings.engine.memory_budget_bytes or await asyncio.to_thread(_usual_budget, settings.engine)
    source = ModelSource(partial(_open, settings), partial(_describe, settings))
    pool = ModelPool(source, budget, settings.serve.model_wait_s)
    try:
        for name in dict.fromkeys((settings.model, *settings.models)):
            await pool.add(name)
        pool.default.adapters |= settings.adapters
        await pool.load_default()
        yield pool
    finally:
        await pool.close()


def _usual_budget(config: EngineConfig) -> int:
    """Four fifths of the memory where the models run: of the GPU, or of this machine."""
    from vermilion.models import machine

    gpu = 0 if config.device == "cpu" or config.backend == "native" else machine.gpu_memory_bytes()
    return (gpu or machine.memory_bytes()) * 4 // 5


def _describe(settings: Settings, name: str) -> Described:
    from vermilion.engine.loading import describe_model
    from vermilion.models import catalog

    if not catalog.is_pulled(name):
        row = published_models().get(name)
        return Described(ModelInfo(name, row.context_length if row else 0, 0, (), -1), 0, pulled=False)
    info, size_bytes = describe_model(name, settings.engine)
    return Described(info, size_bytes)


def _open(settings: Settings, name: str) -> Opened:
    from vermilion.decoding.presets import resolve
    from vermilion.engine.llm import LLM
    from vermilion.engine.loading import load_model
    from vermilion.engine.service import Service

    loaded = load_model(name, settings.engine)
    if name == settings.model:
        if loaded.template is None:
            raise ModelFileError(f"{name} has no chat template, and the service needs one to chat.")
        resolve(loaded.engine.model, settings.serve.default_preset)
    # The first forwards allocate and choose kernels; nobody should wait for that.
    LLM(loaded=loaded).generate("Once upon a time", Sampling(max_tokens=WARM_UP_TOKENS))
    _ = loaded.tokenizer.longest_token_bytes
    service = Service(loaded.engine, settings.engine.max_waiting)
    return Opened(Served(service, loaded.tokenizer, loaded.template, name), partial(_close, service))


def _close(service: Service) -> None:
    """Ends the engine's thread and gives its memory back."""
    service.close()
    # What was there when the service was ready is frozen, and a model is full of circles.
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
