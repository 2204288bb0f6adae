"""Engine replicas in this process, in the place of Ray's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from serving.fake import FakeBackend, served
from vermilion.ray_serve.answer_items import Item, ReplicaLost, ReplicaRefusal
from vermilion.ray_serve.engine_replica import EngineReplica
from vermilion.serving.pooled_model import Opened
from vermilion.types import Request


def replica_of(backend: FakeBackend, max_adapters: int = 8) -> EngineReplica:
    return EngineReplica(lambda: Opened(served(backend), lambda: None), max_adapters)


@dataclass
class Fleet:
    """As `Replicas`: each try asks the next of `replicas`."""

    replicas: list[EngineReplica]
    lost_after: dict[int, int] = field(default_factory=dict)
    """After so many lists of items that replica is lost."""
    full: bool = False
    asked: list[int] = field(default_factory=list)

    async def generate(self, request: Request, folder: str) -> AsyncGenerator[list[Item], None]:
        if self.full:
            await asyncio.Event().wait()
        number = len(self.asked) % len(self.replicas)
        self.asked.append(number)
        left = self.lost_after.get(number, -1)
        async with aclosing(self.replicas[number].generate(request, folder)) as batches:
            async for batch in batches:
                if left == 0:
                    raise ReplicaLost("killed")
                left -= 1
                yield batch

    async def attach(self, name: str, folder: str) -> ReplicaRefusal | None:
        return await self.replicas[0].attach(name, folder)
