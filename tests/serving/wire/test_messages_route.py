"""POST /v1/messages: Anthropic's API, for text."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serving.fake import MODEL, FakeBackend

pytestmark = pytest.mark.anyio
QUESTION = {"max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]}


async def ask(client: httpx.AsyncClient, **fields: object) -> httpx.Response:
    return await client.post("/v1/messages", json={**QUESTION, **fields})


def events(content: str) -> list[tuple[str, dict[str, Any]]]:
    frames = (frame.split("\n") for frame in content.split("\n\n") if frame)
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]


async def test_a_message_answers_with_a_block_of_text(client: httpx.AsyncClient) -> None:
    reply = (await ask(client)).json()
    assert reply["id"].startswith("msg_")
    assert (reply["type"], reply["role"], reply["stop_reason"]) == ("message", "assistant", "end_turn")
    assert reply["content"] == [{"type": "text", "text": "Hello, world!"}]
    usage = reply["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (4, 4, 4)


async def test_fields_reach_the_engine(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    blocks = [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]
    reply = await ask(
        client,
        system=blocks,
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
        ],
        max_tokens=2,
        stop_sequences=["x", ""],
        temperature=0.5,
        top_p=0.5,
        top_k=3,
        metadata={"user_id": "1"},
        preset="ar",
    )
    assert reply.json()["stop_reason"] == "max_tokens"
    (request,) = backend.requests
    assert "".join(map(chr, request.prompt)) == "system:s\nuser:ab\n"
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.stop, sampling.temperature) == (2, ("x",), 0.5)
    assert (sampling.top_p, sampling.top_k, request.decoding.decoder) == (0.5, 3, "ar")


async def test_the_model_goes_on_from_words_put_in_its_mouth(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "{ "}]
    await ask(client, messages=turns)
    assert "".join(map(chr, backend.requests[0].prompt)) == "user:hi\n{"


async def test_a_stream_has_every_event_in_order(client: httpx.AsyncClient) -> None:
    heard = events((await ask(client, stream=True)).text)
    assert all(name == body["type"] for name, body in heard)
    assert [name for name, _ in heard] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 4,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    texts = [body["delta"]["text"] for name, body in heard if name == "content_block_delta"]
    assert "".join(texts) == "Hello, world!"
    assert heard[0][1]["message"]["usage"]["input_tokens"] == 8
    assert heard[-2][1]["delta"]["stop_reason"] == "end_turn"
    assert heard[-2][1]["usage"]["output_tokens"] == 4


@pytest.mark.parametrize(
    ("fields", "status", "kind", "fragment"),
    [
        ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error", "tool_choice"),
        ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "invalid_request_error", "role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            400,
            "invalid_request_error",
            "only text",
        ),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, 400, "invalid_request_error", "context"),
        ({"model": "claude"}, 404, "not_found_error", "claude"),
    ],
)
async def test_refusals_have_anthropics_shape(
    client: httpx.AsyncClient, fields: dict[str, object], status: int, kind: str, fragment: str
) -> None:
    reply = await ask(client, **fields)
    assert reply.status_code == status
    body = reply.json()
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert fragment in body["error"]["message"]


async def test_failures_and_a_full_queue_have_it_too(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.failure = KeyError("x")
    whole = await ask(client)
    assert (whole.status_code, whole.json()["error"]["type"]) == (500, "api_error")
    name, body = events((await ask(client, stream=True)).text)[-1]
    assert (name, body["error"]["type"]) == ("error", "api_error")
    backend.capacity = 0
    busy = await ask(client)
    assert (busy.status_code, busy.json()["error"]["type"]) == (429, "rate_limit_error")
    assert (await client.get("/v1/messages")).json()["error"]["type"] == "invalid_request_error"


async def test_counted_tokens_are_those_a_message_uses(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.model = replace(MODEL, context_length=4096)
    tool = {"name": "f", "input_schema": {"type": "object"}}
    asked = {"system": "Be brief.", "messages": [{"role": "user", "content": "hi"}], "tools": [tool]}
    counted = (await client.post("/v1/messages/count_tokens", json=asked)).json()
    asked |= {"max_tokens": 8}
    used = (await client.post("/v1/messages", json=asked)).json()["usage"]
    assert counted == {"input_tokens": used["input_tokens"] + used["cache_read_input_tokens"]}


async def test_words_in_the_models_mouth_need_a_question(client: httpx.AsyncClient) -> None:
    for route in ("/v1/messages", "/v1/messages/count_tokens"):
        body = {"max_tokens": 4, "messages": [{"role": "assistant", "content": "It is"}]}
        reply = await client.post(route, json=body)
        assert reply.status_code == 400
        assert "user" in reply.json()["error"]["message"]
