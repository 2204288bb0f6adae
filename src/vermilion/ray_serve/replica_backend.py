"""A backend whose model runs in several replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from vermilion.errors import EngineFailure, ModelNotFound, VermilionError
from vermilion.ray_serve.answer_items import Assigned, Item, RefusedByReplica, ReplicaLost, ReplicaRefusal
from vermilion.serving.model_pool import total_stats
from vermilion.types import Canvas, EngineStats, Event, Finish, ModelInfo, Request, Text, Usage

_MOST_TRIES = 5
_DRAINING = "service_draining"


class NoReplica(VermilionError):
    """No engine has taken the request in time."""

    status = 503
    code = "no_replica"
    retry_after_s = 5


class Replicas(Protocol):
    """The engines of one model, behind a router."""

    def generate(self, request: Request, folder: str) -> AsyncGenerator[list[Item], None]:
        """As `EngineReplica.generate`, of a replica that has room. Raises `ReplicaLost`, `Overloaded` and
        `EngineFailure`. Closing it cancels the request."""

    async def attach(self, name: str, folder: str) -> ReplicaRefusal | None:
        """As `EngineReplica.attach`, of any."""


class ReplicaBackend:
    """Answers with what a replica says; with another's before its first word, where one is lost."""

    def __init__(
        self, replicas: Replicas, model: ModelInfo, adapters: dict[str, Path], wait_s: float = 60.0
    ) -> None:
        """A request waits up to `wait_s` for a replica that takes it."""
        self._replicas = replicas
        self._model = model
        self._adapters = dict(adapters)
        self._wait_s = wait_s
        self._prompts: dict[str, Usage] = {}
        self._stats: dict[str, EngineStats] = {}

    @property
    def model(self) -> ModelInfo:
        return replace(self._model, adapters=tuple(self._adapters))

    def stats(self) -> EngineStats:
        """Counters as replicas told them with their last answers; requests that run are counted here."""
        return replace(total_stats(list(self._stats.values())), running=len(self._prompts), waiting=0)

    def prefilled(self, request_id: str) -> Usage:
        own = [
            usage
            for id, usage in self._prompts.items()
            if id == request_id or id.startswith(f"{request_id}-")
        ]
        return Usage(sum(usage.prompt_tokens for usage in own), sum(usage.cached_tokens for usage in own))

    async def load_adapter(self, name: str, folder: Path) -> None:
        """`folder` is read by each replica that needs it, so it must be there on every machine."""
        if refusal := await self._replicas.attach(name, str(folder)):
            raise RefusedByReplica(refusal)
        self._adapters[name] = folder

    async def unload_adapter(self, name: str) -> None:
        if name not in self._adapters:
            raise ModelNotFound(name, tuple(self._adapters))
        del self._adapters[name]

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """The events of one answer.

        Raises what the engine raises, as `RefusedByReplica`; `Overloaded`, `NoReplica`, `EngineFailure` for
        an answer whose replica was lost, and `ModelNotFound`.
        """
        if request.adapter and request.adapter not in self._adapters:
            raise ModelNotFound(request.adapter, tuple(self._adapters))
        folder = str(self._adapters[request.adapter]) if request.adapter else ""
        for _ in range(_MOST_TRIES):
            told = False
            self._prompts[request.id] = Usage()
            try:
                async with aclosing(self._answer(request, folder)) as events:
                    async for event in events:
                        told = True
                        yield event
                return
            except ReplicaLost:
                if told:
                    raise EngineFailure("The engine that worked on this answer is gone. Try again.") from None
            finally:
                self._prompts.pop(request.id, None)
        raise NoReplica(f"{_MOST_TRIES} engines were lost one after the other. Try again shortly.")

    async def _answer(self, request: Request, folder: str) -> AsyncGenerator[Event, None]:
        """Of one replica. Raises `ReplicaLost` too."""
        replica, ended = "", False
        async with aclosing(self._replicas.generate(request, folder)) as batches:
            first = await self._admitted(batches)
            try:
                async for item in _items(first, batches):
                    match item:
                        case Assigned():
                            replica = item.replica
                        case Usage():
                            self._prompts[request.id] = item
                        case EngineStats():
                            self._stats[replica] = item
                        case ReplicaRefusal(code=code) if code == _DRAINING:
                            raise ReplicaLost(item.message)
                        case ReplicaRefusal():
                            raise RefusedByReplica(item)
                        case Text() | Canvas() | Finish():
                            ended = isinstance(item, Finish)
                            yield item
            except ReplicaLost:
                self._stats.pop(replica, None)
                raise
        if not ended:
            raise ReplicaLost("its stream ended in the middle of an answer")

    async def _admitted(self, batches: AsyncIterator[list[Item]]) -> list[Item]:
        """The first list, once a replica has room. Raises `NoReplica`."""
        try:
            async with asyncio.timeout(self._wait_s):
                return await anext(batches)
        except StopAsyncIteration:
            raise ReplicaLost("it said nothing") from None
        except TimeoutError:
            raise NoReplica(
                f"No engine of {self._model.id} took this request within {self._wait_s:.0f} s: all "
                "are busy or still starting. Try again shortly."
            ) from None


async def _items(first: list[Item], batches: AsyncIterator[list[Item]]) -> AsyncGenerator[Item, None]:
    for item in first:
        yield item
    async for batch in batches:
        for item in batch:
            yield item
