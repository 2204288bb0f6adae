"""What the engine refuses is the caller's mistake in every protocol's own shape, whole or as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from serving.fake import MODEL, FakeBackend
from vermilion.errors import BadRequest
from vermilion.types import Event, Finish, Request, Usage

pytestmark = pytest.mark.anyio
MESSAGE = "response_format: nothing fits this grammar."
TALK = {"messages": [{"role": "user", "content": "hi"}]}
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": TALK,
    "/v1/completions": {"prompt": "hi"},
    "/v1/fim/completions": {"prompt": "a(", "suffix": ")"},
    "/v1/messages": {**TALK, "max_tokens": 9},
    "/v1/responses": {"input": "hi"},
    "/api/chat": {**TALK, "model": MODEL.id, "stream": False},
    "/api/generate": {"prompt": "hi", "model": MODEL.id, "stream": False},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/v1/infill": {"parts": ["a", {}]},
    "/api/v0/chat/completions": TALK,
    "/v1/apply/completions": TALK,
}


class Refusing(FakeBackend):
    """Refuses at once, or at the first token, as the engine does where a grammar turns out to be endless."""

    at_once = True

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        if self.at_once:
            raise BadRequest(MESSAGE, "response_format", "invalid_grammar")
        yield Finish("error", Usage(), MESSAGE, code="invalid_grammar")


@pytest.fixture
def backend() -> FakeBackend:
    return Refusing()


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ASKED)
async def test_a_refusal_of_the_engine_is_a_400(
    client: httpx.AsyncClient, backend: FakeBackend, path: str, stream: bool, at_once: bool
) -> None:
    backend.at_once = at_once  # type: ignore[attr-defined]
    reply = await client.post(path, json={**ASKED[path], "stream": stream})
    assert reply.status_code == 400, reply.text
    body = reply.json()
    if path == "/v1/messages":
        assert body == {"type": "error", "error": {"type": "invalid_request_error", "message": MESSAGE}}
    elif path in ("/api/chat", "/api/generate"):
        assert body == {"error": MESSAGE}
    else:
        error = {"message": MESSAGE, "type": "invalid_request_error", "param": "response_format"}
        assert body == {"error": {**error, "code": "invalid_grammar"}}
