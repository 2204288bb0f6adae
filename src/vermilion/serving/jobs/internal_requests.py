"""A request that the service makes to itself: the same routes, checks and metering as from outside."""

from __future__ import annotations

import asyncio
import json
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

from vermilion.accounts.gate import Visit

BACKGROUND: ContextVar[bool] = ContextVar("background", default=False)
"""Whether this task's requests to the engine run only while nobody else's do."""
FROM_WITHIN = "vermilion.visit"
"""Key of the scope under which such a request says for whom it is; no client can set it."""


@dataclass(frozen=True, slots=True)
class InternalReply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: Any


async def post(app: ASGIApp, path: str, content: bytes, visit: Visit | None) -> InternalReply:
    """POST JSON to a route of `app`, in the background; cancelling this cancels the request."""
    sent: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]
    status, headers, chunks = 500, dict[str, str](), list[bytes]()

    async def receive() -> Message:
        if sent:
            return sent.pop()
        # Nobody hangs up on us.
        hanging_up: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        return await hanging_up

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            chunks.append(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": None,
        "server": None,
        "state": {},
        FROM_WITHIN: visit,
    }
    token = BACKGROUND.set(True)
    try:
        await app(scope, receive, send)
    finally:
        BACKGROUND.reset(token)
    return InternalReply(status, headers, json.loads(b"".join(chunks) or b"null"))
