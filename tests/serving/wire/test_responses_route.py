"""POST /v1/responses, read by the official client in strict validation."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from serving.fake import MODEL, FakeBackend

pytestmark = pytest.mark.anyio
TOOL = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}


def sdk(client: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key="unused",
        base_url=f"{client.base_url}/v1",
        http_client=client,
        _strict_response_validation=True,
        max_retries=0,
    )


async def test_the_official_client_reads_a_reply(client: httpx.AsyncClient) -> None:
    reply = await sdk(client).responses.create(model=MODEL.id, input="hi", instructions="Be kind.")
    assert (reply.status, reply.output_text) == ("completed", "Hello, world!")
    assert reply.usage and reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens


async def test_the_official_client_reads_a_stream(client: httpx.AsyncClient) -> None:
    stream = await sdk(client).responses.create(model=MODEL.id, input="hi", stream=True)
    events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == "Hello, world!" and len(deltas) > 1
    assert [event.type for event in events][:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    last = events[-1]
    assert last.type == "response.completed" and last.response.output_text == "Hello, world!"


async def test_a_call_is_an_item_whole_and_streamed(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.model = replace(MODEL, context_length=2048)
    backend.words = ('<tool_call>\n{"name": "weather", ', '"arguments": {"city": "Oslo"}}\n</tool_call>')
    for stream in (False, True):
        asked: dict[str, Any] = {"model": MODEL.id, "input": "hi", "tools": [TOOL], "stream": stream}
        reply = await sdk(client).responses.create(**asked)
        if stream:
            events = [event async for event in reply]
            assert "response.function_call_arguments.done" in [event.type for event in events]
            reply = events[-1].response
        (item,) = reply.output
        assert (item.type, item.name, json.loads(item.arguments)) == (
            "function_call",
            "weather",
            {"city": "Oslo"},
        )


async def test_items_reach_the_template_and_a_format_the_grammar(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "how is it in Oslo"}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    ]
    text = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}}
    backend.model = replace(MODEL, context_length=2048)
    reply = await client.post("/v1/responses", json={"input": items, "text": text, "max_output_tokens": 9})
    assert reply.status_code == 200, reply.text
    (request,) = backend.requests
    assert request.grammar is not None and request.grammar.kind == "json_schema"
    assert request.sampling.max_tokens == 9
    assert reply.json()["text"]["format"]["schema"] == schema


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"previous_response_id": "resp_1"}, "not stored"),
        ({"input": []}, "no message"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "reads only text"),
    ],
)
async def test_what_cannot_be_done_is_said(
    client: httpx.AsyncClient, fields: dict[str, object], said: str
) -> None:
    reply = await client.post("/v1/responses", json={"input": "hi", **fields})
    assert reply.status_code == 400
    assert said in reply.json()["error"]["message"]
