"""The service on a loopback socket, and waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from serving.fake import FakeBackend, served
from vermilion.serving.backend import Served
from vermilion.serving.http.server import serve
from vermilion.serving.serve_config import ServeConfig

QUESTION = {"messages": [{"role": "user", "content": "hi"}]}


@dataclass
class Running:
    client: httpx.AsyncClient
    url: str
    stop: asyncio.Event
    ended: asyncio.Task[None]


@asynccontextmanager
async def running(
    backend: FakeBackend, loading_s: float = 0.0, drain_timeout_s: float = 5.0, keep_alive_s: float = 10.0
) -> AsyncIterator[Running]:
    @asynccontextmanager
    async def load() -> AsyncIterator[Served]:
        await asyncio.sleep(loading_s)
        yield served(backend)

    config = ServeConfig(port=0, drain_timeout_s=drain_timeout_s, keep_alive_s=keep_alive_s)
    opened: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    ended = asyncio.create_task(serve(config, load, stop, opened.set_result))
    url = await opened
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        if not loading_s:
            await until_ready(client)
        try:
            yield Running(client, url, stop, ended)
        finally:
            stop.set()
            await asyncio.wait_for(ended, 10)


async def until_ready(client: httpx.AsyncClient) -> None:
    await until(lambda: client.get("/ready"), lambda reply: reply.status_code == 200)


async def until(probe: Callable, accept: Callable = bool, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            result = probe()
            if accept(await result if asyncio.iscoroutine(result) else result):
                return
            await asyncio.sleep(0.005)


async def cancellations(client: httpx.AsyncClient) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("vermilion_cancellations_total"))
