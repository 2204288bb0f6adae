"""POST /v1/messages: Anthropic's API, for text."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serving.fake import MODEL, FakeBackend
from serving.walking import fits
from vermilion.types import Finish, Usage

pytestmark = pytest.mark.anyio
QUESTION = {"max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]}

SAID = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
SHAPED = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
FORMAT = ("invalid_request_error", "must be the user's where a format is asked for")
TOOL = {"name": "f", "input_schema": {"type": "object"}}


def prompt(backend: FakeBackend) -> str:
    """What the last request has the model read."""
    return "".join(map(chr, backend.requests[-1].prompt))


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
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_request_error", "role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            400,
            "invalid_request_error",
            "only text",
        ),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, 400, "invalid_request_error", "prompt is "),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "url"}}]}]},
            400,
            "invalid_request_error",
            "'document' cannot be read",
        ),
        ({"messages": [*SAID, {"role": "assistant", "content": "{"}], **SHAPED}, 400, *FORMAT),
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
    # A client learns by how much its conversation is too long.
    asked["messages"] = [{"role": "user", "content": "x" * 9000}]
    counted = (await client.post("/v1/messages/count_tokens", json=asked)).json()
    assert counted["input_tokens"] > 9000


async def test_words_in_the_models_mouth_need_a_question(client: httpx.AsyncClient) -> None:
    for route in ("/v1/messages", "/v1/messages/count_tokens"):
        body = {"max_tokens": 4, "messages": [{"role": "assistant", "content": "It is"}]}
        reply = await client.post(route, json=body)
        assert reply.status_code == 400
        assert "user" in reply.json()["error"]["message"]


async def test_the_history_of_an_agent_is_read_whatever_it_holds(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.model = replace(MODEL, context_length=4096)
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    known = {"type": "tool_reference", "tool_name": "g"}
    used = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
    turns = [
        {"role": "user", "content": "look"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "secret", "signature": "x"},
                {"type": "redacted_thinking", "data": "hidden"},
                {"type": "refusal", "refusal": "I would rather not. "},
                {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}},
                used,
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [known, picture]}],
        },
        {"role": "system", "content": [{"type": "text", "text": "Be quick."}]},
        {"role": "user", "content": "go on"},
    ]
    reply = await ask(client, messages=turns, tools=[TOOL], tool_choice={"type": "none"})
    assert reply.status_code == 200, reply.text
    assert prompt(backend) == (
        "user:look\n"
        "assistant:I would rather not. [server_tool_use left out: this model reads only text]\n"
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
        "user:<tool_response>\n[tool g]\n[image left out: this model reads only text]\n</tool_response>\n"
        "system:Be quick.\n"
        "user:go on\n"
    )


@pytest.mark.parametrize(
    ("block", "read"),
    [
        (
            {"type": "document", "title": "Plan", "source": {"type": "text", "data": "Step 1"}},
            "<document>\nPlan\nStep 1\n</document>\n",
        ),
        (
            {
                "type": "document",
                "source": {"type": "content", "content": [{"type": "text", "text": "Step 2"}]},
            },
            "<document>\nStep 2\n</document>\n",
        ),
        (
            {
                "type": "search_result",
                "source": "https://a.b",
                "title": "A",
                "content": [{"type": "text", "text": "found"}],
            },
            "<search_result>\nA\nhttps://a.b\nfound\n</search_result>\n",
        ),
    ],
)
async def test_text_documents_are_read(
    client: httpx.AsyncClient, backend: FakeBackend, block: dict[str, object], read: str
) -> None:
    reply = await ask(client, messages=[{"role": "user", "content": [block, {"type": "text", "text": "?"}]}])
    assert reply.status_code == 200, reply.text
    assert prompt(backend) == f"user:{read}?\n"


async def test_a_beginning_of_blocks_goes_on_like_a_string(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    blocks = [{"type": "thinking", "thinking": "x", "signature": "y"}, {"type": "text", "text": "It is "}]
    await ask(client, messages=[*SAID, {"role": "assistant", "content": blocks}])
    assert prompt(backend) == "user:hi\nIt is"


@pytest.mark.parametrize("route", ["/v1/messages", "/v1/messages?beta=true"])
async def test_every_name_of_claudes_is_the_served_model(client: httpx.AsyncClient, route: str) -> None:
    for name in ("claude-opus-4-5-20251101", "claude-haiku-4-5", MODEL.id):
        reply = await client.post(route, json={**QUESTION, "model": name})
        assert (reply.status_code, reply.json()["model"]) == (200, MODEL.id)
        assert (await client.get(f"/v1/models/{name}")).status_code == 200


async def test_names_of_claudes_can_be_switched_off(open_client) -> None:
    async with open_client(claude_names=False) as client:
        reply = await ask(client, model="claude-opus-4-5")
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found_error")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_is_too_long_is_told_in_anthropics_words(
    client: httpx.AsyncClient, stream: bool
) -> None:
    reply = await ask(client, messages=[{"role": "user", "content": "x" * 300}], stream=stream)
    assert reply.status_code == 400
    assert reply.json()["error"] == {
        "type": "invalid_request_error",
        "message": "prompt is too long: 306 tokens > 256 maximum",
    }


@pytest.mark.parametrize("fields", [SHAPED, {"output_format": SHAPED["output_config"]["format"]}])
async def test_an_output_format_holds_the_answer(
    client: httpx.AsyncClient, backend: FakeBackend, fields: dict[str, object]
) -> None:
    backend.model = replace(MODEL, context_length=4096)
    assert (await ask(client, **fields)).status_code == 200
    grammar = backend.requests[0].grammar
    assert grammar is not None and fits(grammar, '{"a": 1}') and not fits(grammar, '{"a": "1"}')


async def test_effort_chooses_how_answers_are_decoded(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    for effort in ("low", "max"):
        assert (await ask(client, output_config={"effort": effort})).status_code == 200
    assert [request.decoding.decoder for request in backend.requests] == ["relaxed", "lossless"]


@pytest.mark.parametrize(
    ("choice", "num_calls"),
    [
        ({"type": "any"}, 1),
        ({"type": "any", "disable_parallel_tool_use": True}, 1),
        ({"type": "any", "disable_parallel_tool_use": False}, 4),
        ({"type": "tool", "name": "f"}, 1),
    ],
)
async def test_a_demanded_call_is_one_unless_several_are_asked_for(
    client: httpx.AsyncClient, backend: FakeBackend, choice: dict[str, object], num_calls: int
) -> None:
    backend.model = replace(MODEL, context_length=4096)
    backend.words = ('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',)
    hosted = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
    answer = await ask(client, tools=[hosted, TOOL], tool_choice=choice)
    assert answer.headers["x-schema-ignored"] == "tools: web_search_20250305"
    reply = answer.json()
    assert reply["stop_reason"] == "tool_use"
    assert [(block["type"], block["name"]) for block in reply["content"]] == [("tool_use", "f")]
    grammar = backend.requests[0].grammar
    assert grammar is not None and "web_search" not in grammar.text
    assert (f"{{0,{num_calls - 1}}}" in grammar.text) == (num_calls > 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_reply_names_the_sequence_that_ended_it(
    client: httpx.AsyncClient, backend: FakeBackend, stream: bool
) -> None:
    backend.finish = Finish("stop", Usage(4, 0, 1, 1), stop_string="END")
    reply = await ask(client, stop_sequences=["END"], stream=stream)
    told = events(reply.text)[-2][1]["delta"] if stream else reply.json()
    assert (told["stop_reason"], told["stop_sequence"]) == ("stop_sequence", "END")
