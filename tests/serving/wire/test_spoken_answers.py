"""What a voice needs of a stream: where its writes begin and end, and that leaving early is ordinary."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from serving.fake import FakeBackend, fake_service
from serving.running import QUESTION, running, until
from vermilion.serving.http import server
from vermilion.serving.http.app import create_app

pytestmark = pytest.mark.anyio


async def writes(backend: FakeBackend, **body: Any) -> list[bytes]:
    """The pieces of a streamed answer's body, as they are handed to the socket."""
    content = json.dumps({**QUESTION, "stream": True, "realtime": True, **body}).encode()
    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    headers.append((b"content-length", str(len(content)).encode()))
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions", "query_string": b"",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("localhost", 80), "root_path": "",
    }  # fmt: skip
    sent: list[bytes] = []
    unread = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if unread:
            return unread.pop()
        await until(lambda: sent and sent[-1] == b"", timeout_s=10)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            sent.append(message["body"])

    await create_app(fake_service(backend))(scope, receive, send)
    return sent


async def test_the_role_comes_with_the_first_text_and_the_reason_with_the_end(backend: FakeBackend) -> None:
    first, *_, last, nothing = await writes(backend, stream_options={"include_usage": True})
    assert b'"role":"assistant"' in first and b'"content":"H' in first
    assert b'"finish_reason":"' in last and b'"usage":' in last and last.endswith(b"data: [DONE]\n\n")
    assert nothing == b""


async def test_an_answer_of_another_choice_does_not_wait_for_the_end(backend: FakeBackend) -> None:
    sent = await writes(backend, n=2)
    together = b"".join(sent)
    assert together.count(b'"finish_reason":"') == 2 and together.endswith(b"data: [DONE]\n\n")


async def test_an_idle_connection_outlives_a_turn() -> None:
    assert server._KEEP_ALIVE_S >= 75


async def test_leaving_before_a_word_is_counted_and_not_logged_as_a_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "vermilion"):
        async with running(FakeBackend(step_s=60)) as service:
            body = {**QUESTION, "stream": True, "realtime": True}
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await service.client.post("/v1/chat/completions", json=body)
            counted = "vermilion_cancellations_total 1.0"
            await until(lambda: service.client.get("/metrics"), lambda reply: counted in reply.text)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
