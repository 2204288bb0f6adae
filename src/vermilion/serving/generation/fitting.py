"""Answers that fill a gap, each judged by the base: how likely it and the suffix are behind the prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from vermilion.decoding.given import fit_of
from vermilion.serving.backend import Served
from vermilion.serving.generation.choices import Choice
from vermilion.types import Event, Finish, ModelInfo, Request, Usage


@dataclass(slots=True)
class Fitting:
    """Writes answers and reads them: their `Finish` tells the `fit`. What is read costs no tokens."""

    served: Served
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One is read at a time: the first stores the prompt for the others."""

    @property
    def model(self) -> ModelInfo:
        return self.served.backend.model

    def prefilled(self, request_id: str) -> Usage:
        return self.served.backend.prefilled(request_id)

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """As `EventSource.generate` says."""
        written = Choice()
        async with aclosing(self.served.backend.generate(request)) as events:
            async for event in events:
                written.add(event)
                if not isinstance(event, Finish) or event.reason in ("error", "abort"):
                    yield event
                else:
                    yield await self._judged(event, request, written.text)

    async def _judged(self, finish: Finish, request: Request, answer: str) -> Finish:
        read, asked = Choice(), fit_of(request, answer, self.served.tokenizer)
        async with self._turn, aclosing(self.served.backend.generate(asked)) as events:
            async for event in events:
                read.add(event)
                if isinstance(event, Finish) and event.reason in ("error", "abort"):
                    return replace(event, usage=finish.usage)
        return replace(finish, fit=sum(token.logprob for token in read.tokens))
