"""Starts the HTTP service: its settings from a file and the command line, its model on a thread."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

from vermilion.cli import pulling
from vermilion.cli.options import ServeOptions
from vermilion.config import load
from vermilion.errors import BadParameter, ConfigError
from vermilion.serving.generation import model_names
from vermilion.serving.http import server
from vermilion.serving.local_models import local_models
from vermilion.serving.settings import Settings

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
        model_names.check_adapter_name(name, (settings.model,), settings.serve)
    return replace(settings, adapters=adapters)


def serve(options: ServeOptions, opened: Callable[[str], None]) -> None:
    """Serves until a signal; `opened` gets the address once the port is open, before the model is loaded."""
    settings = settings_of(options)
    if options.ray and settings.upstream.urls:
        raise ConfigError("--ray: a model that runs on another server needs no engines here.")
    # The first process of a container ignores a signal that it does not handle, and a download takes minutes.
    signal.signal(signal.SIGTERM, _leave)
    if not settings.upstream.urls:
        for name in settings.names:
            pulling.ensure(name, options.offline)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("vermilion").setLevel(logging.INFO)
    if options.ray:
        _application().run(settings, opened)
    else:
        server.run(settings.serve, partial(local_models, settings), opened)


def _leave(number: int, frame: object) -> None:
    """There is nothing to drain yet."""
    sys.exit(128 + number)


def _application() -> ModuleType:
    """Raises `ConfigError` without Ray."""
    # Read when Ray is imported, here and in the processes that it starts. Through its object store a chunk
    # takes nearly twice the processor time.
    os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")
    try:
        from vermilion.ray_serve import application
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ConfigError("--ray needs Ray Serve: pip install 'vermilion[ray]'.") from None
    return application
