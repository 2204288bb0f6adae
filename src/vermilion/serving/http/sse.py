"""Streams: frames of bytes, and the response that writes them while somebody listens."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vermilion.errors import EngineFailure, VermilionError
from vermilion.serving.admin.metrics import Metrics
from vermilion.serving.generation.events import EventStream
from vermilion.serving.http.connection import while_connected
from vermilion.types import Event, Finish

EVENT_STREAM = "text/event-stream"
Frames = AsyncGenerator[bytes, None]

_log = logging.getLogger(__name__)


class StreamRenderer(Protocol):
    """Turns the events of one call into frames."""

    media_type: str
    keep_alive: bytes
    """A frame that says nothing; empty where the format has none."""

    def render(self, index: int, event: Event) -> bytes:
        """Frames for one event; empty where it shows nothing."""

    def close(self) -> bytes:
        """Frames after the last event."""

    def fail(self, error: VermilionError) -> bytes:
        """Frames that end a stream which has begun and cannot go on."""


async def frames(answers: EventStream, renderer: StreamRenderer, metrics: Metrics) -> Frames:
    """The stream's bytes. Raises only before the first of them; later errors are frames themselves.

    How an answer ended is written with what follows it: a voice that waits for the end has it in one read.
    """
    started, ending = False, b""
    try:
        async with aclosing(answers):
            async for arrival in answers:
                content = ending + (renderer.render(*arrival) if arrival else renderer.keep_alive)
                ending = b""
                if arrival and isinstance(arrival[1], Finish):
                    ending = content
                elif content:
                    started = True
                    yield content
        yield ending + renderer.close()
    except Exception as error:
        if not started:
            raise
        if not isinstance(error, VermilionError):
            _log.exception("a stream failed")
            error = EngineFailure("An internal error ended this answer.")
        metrics.errors.labels(error.code or error.kind).inc()
        yield ending + renderer.fail(error)


class FrameStream(Response):
    """Sends frames as they come; closes their generator as soon as the client is gone.

    The status waits for the first frame, so that a request the engine refuses gets a status of its own.
    """

    def __init__(self, content: Frames, media_type: str) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers=headers, media_type=media_type)
        del self.headers["content-length"]
        self._frames = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_connected(receive, self._send_frames(send))

    async def _send_frames(self, send: Send) -> None:
        async with aclosing(self._frames) as content:
            frame = await anext(content)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": frame, "more_body": True})
            async for frame in content:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
