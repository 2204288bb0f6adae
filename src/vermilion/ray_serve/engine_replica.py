"""One engine of several: a model in a process of its own, asked through Ray."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from time import monotonic

from vermilion.errors import VermilionError
from vermilion.ray_serve.answer_items import Assigned, Item, ReplicaRefusal
from vermilion.serving.backend import Backend
from vermilion.serving.pooled_model import Opened
from vermilion.types import Finish, Request, Text, Usage

_PROGRESS_S = 0.1
"""How often a prompt that is being read tells what it has cost."""

STALLED_S = 120.0
"""An engine that has requests and makes no pass for so long is given up."""


class EngineReplica:
    """Lives in one event loop."""

    def __init__(self, open: Callable[[], Opened], max_adapters: int) -> None:
        self._opened = open()
        self._name = secrets.token_hex(4)
        self._adapters = ReplicaAdapters(self._backend, max_adapters)
        self._passes = (-1, monotonic())

    @property
    def _backend(self) -> Backend:
        return self._opened.served.backend

    async def generate(self, request: Request, folder: str = "") -> AsyncIterator[list[Item]]:
        """The answer, in lists of what has come since the last one; `folder` is that of the request's
        adapter. The last item is a `Finish` or a `ReplicaRefusal`."""
        yield [Assigned(self._name)]
        items: asyncio.Queue[Item | None] = asyncio.Queue()
        pump = asyncio.create_task(self._pump(request, folder, items))
        try:
            told, silent = Usage(), True
            while True:
                batch = await _take(items, _PROGRESS_S if silent else None)
                silent = silent and not any(isinstance(item, Text) for item in batch)
                if batch and batch[-1] is None:
                    yield [item for item in batch if item is not None]
                    return
                if not batch and (spent := self._backend.prefilled(request.id)) != told:
                    told, batch = spent, [spent]
                if batch:
                    yield [item for item in batch if item is not None]
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    async def _pump(self, request: Request, folder: str, items: asyncio.Queue[Item | None]) -> None:
        try:
            async with (
                self._adapters.using(request.adapter, folder),
                aclosing(self._backend.generate(request)) as events,
            ):
                async for event in events:
                    if isinstance(event, Finish):
                        items.put_nowait(self._backend.stats())
                    items.put_nowait(event)
        except VermilionError as error:
            items.put_nowait(ReplicaRefusal.of(error))
        finally:
            items.put_nowait(None)

    async def attach(self, name: str, folder: str) -> ReplicaRefusal | None:
        """Why the adapter cannot be used; None where it can."""
        try:
            async with self._adapters.using(name, folder):
                return None
        except VermilionError as error:
            return ReplicaRefusal.of(error)

    def check_health(self) -> None:
        """Asked by Ray, which replaces a replica where this raises."""
        stats = self._backend.stats()
        if not stats.running or stats.passes != self._passes[0]:
            self._passes = (stats.passes, monotonic())
        elif monotonic() - self._passes[1] > STALLED_S:
            raise RuntimeError(f"{stats.running} requests, and no pass for {STALLED_S:.0f} s")

    def __del__(self) -> None:
        """Called by Ray once the last answer has ended."""
        self._opened.close()


async def _take(items: asyncio.Queue[Item | None], wait_s: float | None) -> list[Item | None]:
    """All that has come, at least one unless nothing comes for so long."""
    batch: list[Item | None] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            batch.append(await items.get())
    while not items.empty():
        batch.append(items.get_nowait())
    return batch


class ReplicaAdapters:
    """The adapters of one replica: read when a request first names them, the one used longest ago given up
    where there are too many and nobody uses it."""

    def __init__(self, backend: Backend, most: int) -> None:
        self._backend = backend
        self._most = most
        self._folders: OrderedDict[str, str] = OrderedDict()
        self._users: Counter[str] = Counter()
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def using(self, name: str, folder: str) -> AsyncIterator[None]:
        """The adapter is there for so long. Raises what `Backend.load_adapter` raises."""
        if not name:
            yield
            return
        self._users[name] += 1
        try:
            async with self._turn:
                await self._load(name, folder)
            yield
        finally:
            self._users[name] -= 1

    async def _load(self, name: str, folder: str) -> None:
        if self._folders.get(name) != folder:
            if name in self._folders:
                await self._unload(name)
            idle = [each for each in self._folders if not self._users[each]]
            for each in idle[: max(0, len(self._folders) + 1 - self._most)]:
                await self._unload(each)
            await self._backend.load_adapter(name, Path(folder))
            self._folders[name] = folder
        self._folders.move_to_end(name)

    async def _unload(self, name: str) -> None:
        del self._folders[name]
        await self._backend.unload_adapter(name)
