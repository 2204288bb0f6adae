"""Starts the HTTP service: its settings from a file and the command line, its model on a thread."""

from __future__ import annotations

import asyncio
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
from vermilion.serving.backend import Served
from vermilion.serving.generation import model_names
from vermilion.serving.http import server
from vermilion.serving.remote.upstream_config import UpstreamConfig
from vermilion.serving.serve_config import ServeConfig
from vermilion.types import Sampling

if TYPE_CHECKING:
    from vermilion.engine.service import Service

WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration file of the service: `model` and the tables [serve] and [engine]."""

    model: str = DEFAULT_MODEL
    serve: ServeConfig = field(default_factory=ServeConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    upstream: UpstreamConfig = field(default_factory=UpstreamConfig)
    """Where the model runs, if not here."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """Folders in PEFT's layout, by the names under which they are served."""


_SETTING_OF = {
    "host": "serve.host",
    "port": "serve.port",
    "open": "serve.open",
    "accounts": "serve.accounts.url",
    "model": "model",
    "preset": "serve.default_preset",
    "device": "engine.device",
    "dtype": "engine.dtype",
    "backend": "engine.backend",
    "quantize": "engine.quantize",
    "threads": "engine.threads",
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
    if settings.upstream.urls and options.model:
        settings = replace(settings, upstream=replace(settings.upstream, model=options.model))
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
        pulling.ensure(settings.model, options.offline)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("vermilion").setLevel(logging.INFO)
    server.run(settings.serve, partial(_model, settings), opened)


@asynccontextmanager
async def _model(settings: Settings) -> AsyncIterator[Served]:
    """The loaded model; torch is imported, and the weights read, while the port already answers."""
    if settings.upstream.urls:
        from vermilion.serving.remote.remote_backend import remote_model

        async with remote_model(settings.upstream) as served:
            yield served
        return
    service, served = await asyncio.to_thread(_load, settings)
    try:
        yield served
    finally:
        await asyncio.to_thread(service.close)


def _load(settings: Settings) -> tuple[Service, Served]:
    from vermilion.decoding.presets import resolve
    from vermilion.engine.llm import LLM
    from vermilion.engine.loading import load_model, read_adapter
    from vermilion.engine.service import Service

    loaded = load_model(settings.model, settings.engine)
    if loaded.template is None:
        raise ModelFileError(f"{settings.model} has no chat template, and the service needs one to chat.")
    for name, folder in settings.adapters.items():
        loaded.engine.adapters.add(name, read_adapter(loaded.engine, folder))
    resolve(loaded.engine.model, settings.serve.default_preset)
    # The first forwards allocate and choose kernels; nobody should wait for that.
    LLM(loaded=loaded).generate("Once upon a time", Sampling(max_tokens=WARM_UP_TOKENS))
    service = Service(loaded.engine, settings.engine.max_waiting)
    return service, Served(service, loaded.tokenizer, loaded.template, settings.model)
