"""The service on a thread and a loop of its own, for clients that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from serving.fake import FakeBackend, served
from vermilion.accounts.accounts_config import AccountsConfig
from vermilion.serving.backend import Served
from vermilion.serving.http.server import serve
from vermilion.serving.serve_config import ServeConfig


@contextmanager
def threaded(
    backend: FakeBackend, accounts: str = "", loaded: threading.Event | None = None
) -> Iterator[str]:
    """Its address; it loads until `loaded` is set."""
    found: list[str] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    config = ServeConfig(port=0, accounts=AccountsConfig(url=accounts))

    @asynccontextmanager
    async def load() -> AsyncIterator[Served]:
        if loaded is not None:
            await asyncio.to_thread(loaded.wait, 20)
        yield served(backend)

    def opened(address: str) -> None:
        found.append(address)
        ready.set()

    def run() -> None:
        loop.run_until_complete(serve(config, load, stop, opened))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(20)
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
