"""One model of a service, loaded or not: a backend that loads itself when it is asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Literal

from vermilion.errors import ModelNotFound, ProcessLost, VermilionError
from vermilion.serving.backend import Backend, Served
from vermilion.types import EngineStats, Event, ModelInfo, Request, Usage

State = Literal["not_pulled", "on_disk", "loading", "loaded", "failed"]


class ModelLoading(VermilionError):
    """The model is not loaded yet."""

    status = 503
    code = "model_loading"
    retry_after_s = 5

    def __init__(self, name: str = "") -> None:
        super().__init__(
            f"The model {name} is still loading. Try again shortly; /v1/models shows when it is there."
            if name
            else "The model is still loading. Try again shortly; /ready turns 200 when it is there."
        )


class ModelUnavailable(VermilionError):
    """The model cannot be loaded: its files, or the room for it."""

    status = 503
    code = "model_unavailable"
    param = "model"
    retry_after_s = 30


class ModelNotPulled(VermilionError):
    """The model's files are not on this machine."""

    status = 404
    kind = "invalid_request_error"
    code = "model_not_pulled"
    param = "model"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} is not on this machine. POST /v1/models/pull or `vermilion pull {name}` fetches it."
        )


@dataclass(frozen=True, slots=True)
class Opened:
    """A model in memory, and what frees it."""

    served: Served
    close: Callable[[], None]


@dataclass(eq=False)
class PooledModel:
    """As `Backend`; `ensure` of the pool loads it. Its `Served` outlives its weights."""

    name: str
    """By which the pool's loader knows it."""
    info: ModelInfo
    memory_bytes: int
    """What it takes when loaded, as foretold."""
    ensure: Callable[[PooledModel], Awaitable[None]]
    released: Callable[[], None] = lambda: None
    """Called when a request has ended."""
    state: State = "on_disk"
    error: str = ""
    opened: Opened | None = None
    adapters: dict[str, Path] = field(default_factory=dict)
    """What is attached whenever it is loaded."""
    num_waiting: int = 0
    """Requests that wait until it is loaded; a load is theirs before anybody may undo it."""
    num_users: int = 0
    num_requests: int = 0
    num_loads: int = 0
    last_used_s: float = field(default_factory=monotonic)
    leaving: bool = False
    """Whether its place was given away: requests that run end, new ones wait until it is loaded again."""
    _served: Served | None = None

    @property
    def model(self) -> ModelInfo:
        if self.opened is not None:
            return self.opened.served.backend.model
        return replace(self.info, adapters=tuple(self.adapters))

    @property
    def served(self) -> Served | None:
        """None until it was loaded once."""
        return self._served

    async def load(self, opened: Opened) -> None:
        """Takes over a model in memory and attaches its adapters. Raises `ModelFileError` for one that does
        not fit."""
        for name, folder in self.adapters.items():
            await opened.served.backend.load_adapter(name, folder)
        self.info = opened.served.backend.model
        self.opened, self.state, self.error, self.leaving = opened, "loaded", "", False
        self.num_loads += 1
        self._served = replace(opened.served, backend=self)

    def hold(self, served: Served) -> None:
        """Takes over a model that stays in memory; requests go to it without this in between."""
        self.opened, self.state, self._served = Opened(served, lambda: None), "loaded", served

    def unload(self) -> Opened | None:
        """Gives the model in memory back to be closed; None where there is none."""
        opened, self.opened, self.leaving = self.opened, None, False
        if opened is not None:
            self.state = "on_disk"
        return opened

    @contextlib.asynccontextmanager
    async def using(self) -> AsyncIterator[Backend]:
        """The loaded model, which stays for so long. Raises what `ensure` raises."""
        await self.ensure(self)
        assert self.opened is not None
        self.num_users += 1
        try:
            yield self.opened.served.backend
        finally:
            self.num_users -= 1
            self.last_used_s = monotonic()
            self.released()

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        async with self.using() as backend:
            self.num_requests += 1
            try:
                async with aclosing(backend.generate(request)) as events:
                    async for event in events:
                        yield event
            except ProcessLost:
                await self._forsake(backend)
                raise

    async def _forsake(self, backend: Backend) -> None:
        """A model that answers no more leaves the memory; the next request loads it again."""
        if self.opened is not None and self.opened.served.backend is backend:
            opened = self.unload()
            assert opened is not None
            await asyncio.to_thread(opened.close)

    def stats(self) -> EngineStats:
        return self.opened.served.backend.stats() if self.opened else EngineStats()

    def prefilled(self, request_id: str) -> Usage:
        return self.opened.served.backend.prefilled(request_id) if self.opened else Usage()

    async def load_adapter(self, name: str, folder: Path) -> None:
        async with self.using() as backend:
            await backend.load_adapter(name, folder)
            self.adapters[name] = folder

    async def attach(self, name: str, folder: Path) -> None:
        """As `load_adapter`, but a model that is not in memory stays out of it, and takes the adapter in when
        it is loaded."""
        if self.opened is None:
            self.adapters[name] = folder
        else:
            await self.load_adapter(name, folder)

    async def unload_adapter(self, name: str) -> None:
        if name not in self.model.adapters:
            raise ModelNotFound(name, self.model.adapters)
        if self.opened is not None:
            await self.opened.served.backend.unload_adapter(name)
        self.adapters.pop(name, None)
