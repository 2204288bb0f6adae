"""One call for audio, whichever way: its place in the ledger, and its end when the service stops.

Audio is metered in the ledger's tokens: an *audio token* is a tenth of a second, begun ones whole. Text to
be spoken counts a token for each character.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from vermilion.errors import Draining, ModelNotFound, VermilionError
from vermilion.serving.generation.metering import LedgerCall
from vermilion.serving.http.error_rendering import openai_error
from vermilion.serving.service_state import Arrivals, ServiceState
from vermilion.types import Usage

AUDIO_TOKENS_PER_S = 10

Piece = TypeVar("Piece")


def audio_tokens(num_samples: int, sample_rate: int) -> int:
    return -(-num_samples * AUDIO_TOKENS_PER_S // sample_rate)


def check_model(asked: str | None, own: str, known: tuple[str, ...]) -> None:
    """Raises `ModelNotFound` unless the model `own` answers to the name, which may be left out."""
    if asked and asked not in (own, *known):
        raise ModelNotFound(asked[:100], (own, *known))


class AudioCall:
    """`usage` is what it has cost so far."""

    def __init__(self, service: ServiceState, model: str, arrivals: Arrivals) -> None:
        self.usage = Usage()
        self.ledger = LedgerCall(model)
        self._service = service
        self._arrivals = arrivals

    async def settle(self, reply: str | None = None) -> None:
        """Before the last of the reply is sent. Raises `AccountsUnavailable`."""
        await self.ledger.settle(self.usage, reply)

    async def each(self, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
        """The pieces; raises where the service stops in the middle."""
        stopped = asyncio.create_task(self._arrivals.get())
        try:
            async with aclosing(pieces):
                while (piece := await _unless(stopped, pieces)) is not None:
                    yield piece
        finally:
            stopped.cancel()


async def _unless(stopped: asyncio.Task[object], pieces: AsyncGenerator[Piece, None]) -> Piece | None:
    step = asyncio.ensure_future(anext(pieces, None))
    try:
        await asyncio.wait((step, stopped), return_when=asyncio.FIRST_COMPLETED)
        if step.done():
            return step.result()
        error = stopped.result()
        assert isinstance(error, Exception)
        raise error
    finally:
        step.cancel()
        await asyncio.gather(step, return_exceptions=True)


@asynccontextmanager
async def audio_call(service: ServiceState, model: str) -> AsyncIterator[AudioCall]:
    """A call of `model` within which its audio is worked on; recorded however it ends. Raises `Draining`."""
    if service.draining:
        raise Draining()
    failure: BaseException | None = None
    with service.running() as arrivals:
        call = AudioCall(service, model, arrivals)
        try:
            yield call
        except BaseException as error:
            failure = error
            raise
        finally:
            call.ledger.end(call.usage, failure)


async def events(told: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    """Server-sent events; what goes wrong after the first of them is an event too."""
    started = False
    try:
        async with aclosing(told):
            async for content in told:
                started = True
                yield f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()
    except VermilionError as error:
        if not started:
            raise
        yield f"data: {json.dumps({'type': 'error', **openai_error(error)})}\n\n".encode()
