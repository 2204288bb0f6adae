"""Server-sent events: frames of bytes, and the response that writes them while somebody listens."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vermilion.errors import EngineFailure, VermilionError
from vermilion.serving.answers import Answers
from vermilion.serving.connection import while_connected
from vermilion.serving.errors import error_body
from vermilion.serving.metrics import Metrics
from vermilion.types import Event

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
Frames = AsyncGenerator[bytes, None]

_log = logging.getLogger(__name__)


class StreamRenderer(Protocol):
    """Turns the events of one call into frames."""

    def render(self, index: int, event: Event) -> bytes:
        """Frames for one event; empty where it shows nothing."""

    def close(self) -> bytes:
        """Frames after the last event, before `[DONE]`."""


async def frames(answers: Answers, renderer: StreamRenderer, metrics: Metrics) -> Frames:
    """The stream's bytes. Raises only before the first of them; later errors are frames themselves."""
    started = False
    try:
        async with aclosing(answers):
            async for arrival in answers:
                content = renderer.render(*arrival) if arrival else KEEP_ALIVE
                if content:
                    started = True
                    yield content
        yield renderer.close() + DONE
    except Exception as error:
        if not started:
            raise
        if not isinstance(error, VermilionError):
            _log.exception("a stream failed")
            error = EngineFailure("An internal error ended this answer.")
        metrics.errors.labels(error.code or error.kind).inc()
        yield b"data: " + json.dumps(error_body(error)).encode() + b"\n\n" + DONE


class EventStream(Response):
    """Sends frames as they come; closes their generator as soon as the client is gone.

    The status waits for the first frame, so that a request the engine refuses gets a status of its own.
    """

    media_type = "text/event-stream"

    def __init__(self, content: Frames) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
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
