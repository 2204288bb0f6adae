"""An answer that was stopped for repeating itself says so in every protocol, whole and streamed."""

from __future__ import annotations

import json

import httpx
import pytest

from serving.fake import MODEL, FakeBackend
from vermilion.types import Finish, Usage

pytestmark = pytest.mark.anyio
SAID = {"messages": [{"role": "user", "content": "hi"}]}
ASKED = {
    "/v1/chat/completions": (SAID, "finish_reason"),
    "/v1/completions": ({"prompt": "hi"}, "finish_reason"),
    "/v1/messages": ({**SAID, "max_tokens": 9}, "stop_reason"),
    "/v1/responses": ({"input": "hi"}, "incomplete_details"),
    "/api/chat": ({**SAID, "model": MODEL.id}, "done_reason"),
    "/api/generate": ({"prompt": "hi", "model": MODEL.id}, "done_reason"),
    "/infill": ({"input_prefix": "a", "input_suffix": "b"}, "stop_type"),
    "/completion": ({"prompt": "hi"}, "stop_type"),
}


def objects(content: str) -> list[object]:
    """What a reply holds: one object, lines of them, or events."""
    lines = [line.removeprefix("data: ") for line in content.splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


def named(value: object, key: str) -> list[dict[str, object]]:
    """All objects in it that have `key`, and not null."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [one for part in inner for one in named(part, key)]
    return [*found, value] if isinstance(value, dict) and value.get(key) is not None else found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("repetition", [False, True])
async def test_the_reply_says_why_it_is_cut(
    client: httpx.AsyncClient, backend: FakeBackend, path: str, stream: bool, repetition: bool
) -> None:
    backend.finish = Finish("length", Usage(2, 0, 1, 1), repetition=repetition)
    body, reason = ASKED[path]
    reply = await client.post(path, json={**body, "stream": stream})
    assert reply.status_code == 200, reply.text
    ends = named(objects(reply.text), reason)
    assert ends and all(end.get("repetition", False) is repetition for end in ends), ends
    assert ("repetition" in reply.text) is repetition
