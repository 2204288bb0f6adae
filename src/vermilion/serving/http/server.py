"""One process: opens the port, loads the model, serves, and on a signal ends in good order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager

import uvicorn
from fastapi import FastAPI

from vermilion.accounts.gate import Accounts
from vermilion.errors import ConfigError
from vermilion.serving.backend import Served
from vermilion.serving.http.app import create_app
from vermilion.serving.jobs import background
from vermilion.serving.model_pool import ModelPool
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.service_state import ServiceState

ModelLoader = Callable[[], AbstractAsyncContextManager[Served | ModelPool]]
"""Loads and warms a model, the only one or the default of several; its exit stops what was loaded. Slow work
in it belongs on a thread."""

_BACKLOG = 2048
_LAST_FRAMES_S = 2
"""What a connection gets to write its last frames after the answers have ended."""

_KEEP_ALIVE_S = 75
"""Longer than the usual 60 s of a proxy in front, which must be the one to close an idle connection."""

_log = logging.getLogger(__name__)


def run(config: ServeConfig, load: ModelLoader, opened: Callable[[str], None] = _log.info) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal ends at once.

    `opened` gets the address when the port is open, before the model is loaded. Raises `ConfigError` for
    an address that cannot be had, and whatever `load` raises.
    """

    async def until_signal() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def on_signal(number: int) -> None:
            if stop.is_set():
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        await serve(config, load, stop, opened)

    asyncio.run(until_signal())


async def serve(
    config: ServeConfig, load: ModelLoader, stop: asyncio.Event, opened: Callable[[str], None] = _log.info
) -> None:
    """Serves in the running loop until `stop` is set, then drains. Raises as `run` does."""
    listener = _bind(config)
    accounts = Accounts.open(config.accounts) if config.accounts.url else None
    service = ServiceState(config, accounts=accounts)
    app = create_app(service)
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_LAST_FRAMES_S,
        )
    )
    host, port = listener.getsockname()[:2]
    opened(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    serving = asyncio.create_task(server.serve([listener]))
    holding = asyncio.create_task(_hold(service, app, load, stop))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((serving, holding, stopping), return_when=asyncio.FIRST_COMPLETED)
        if service.served is not None:
            await asyncio.wait((serving, holding), return_when=asyncio.FIRST_COMPLETED)
        if holding.done():
            holding.result()
    finally:
        service.draining = True
        server.should_exit = True
        holding.cancel()
        stopping.cancel()
        await asyncio.gather(holding, stopping, return_exceptions=True)
        await serving
        if accounts is not None:
            await asyncio.to_thread(accounts.close)


async def _hold(service: ServiceState, app: FastAPI, load: ModelLoader, stop: asyncio.Event) -> None:
    """Keeps the model from its loading to the end of the drain."""
    async with loaded(service, app, load):
        await stop.wait()


@contextlib.asynccontextmanager
async def loaded(service: ServiceState, app: FastAPI, load: ModelLoader) -> AsyncIterator[None]:
    """Within it `service` has its models and takes requests; at its end the running ones end."""
    async with load() as given:
        models = given if isinstance(given, ModelPool) else ModelPool.of(given)
        served = models.default.served
        assert served is not None
        async with background.opened(service.config, models, app, service.accounts) as service.background:
            await asyncio.to_thread(_prepare, app, served)
            service.models = models
            # What lives as long as the process needs no look at every collection: that takes 50 ms and more.
            gc.collect()
            gc.freeze()
            _log.info("ready")
            yield
            _log.info("draining")
            await service.drain(service.config.drain_timeout_s)


def _prepare(app: FastAPI, served: Served) -> None:
    """Computes what is kept for good, which would hold up every stream when first asked for: 40 ms for the
    longest token of a vocabulary of 49,152, 150 ms for the API reference."""
    app.openapi()
    _ = served.tokenizer.longest_token_bytes


def _bind(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listener = socket.create_server((config.host, config.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {config.host} port {config.port}: {error.strerror or error}. Is another "
            "server running there? Choose another port with --port."
        ) from None
    # Connections inherit it. asyncio sets it only on sockets made with an explicit protocol number; without
    # it a reply's body waits 40 ms for the client's delayed acknowledgement of its head (RFC 896, 1122).
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class _Server(uvicorn.Server):
    """Leaves signals alone: uvicorn would stop accepting at once and die of the signal in the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
