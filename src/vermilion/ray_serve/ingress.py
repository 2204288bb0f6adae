"""The HTTP application as Ray Serve runs it: loaded and drained by ASGI's lifespan."""

from __future__ import annotations

import asyncio

from starlette.types import Message, Receive, Scope, Send

from vermilion.accounts.gate import Accounts
from vermilion.serving.http.app import create_app
from vermilion.serving.http.server import ModelLoader, loaded
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.service_state import ServiceState


class IngressApp:
    """An ASGI application. Raises `ConfigError` for accounts that cannot be opened."""

    def __init__(self, config: ServeConfig, load: ModelLoader) -> None:
        self._load = load
        self._accounts = Accounts.open(config.accounts) if config.accounts.url else None
        self._service = ServiceState(config, accounts=self._accounts)
        self._app = create_app(self._service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await _expect(receive, "lifespan.startup")
        try:
            async with loaded(self._service, self._app, self._load):
                await send({"type": "lifespan.startup.complete"})
                await _expect(receive, "lifespan.shutdown")
        finally:
            if self._accounts is not None:
                await asyncio.to_thread(self._accounts.close)
        await send({"type": "lifespan.shutdown.complete"})


async def _expect(receive: Receive, kind: str) -> None:
    message: Message = await receive()
    assert message["type"] == kind, message["type"]
