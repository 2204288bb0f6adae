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
HOSTED = [
    {"type": "web_search", "filters": {"allowed_domains": ["a.b"]}},
    {"type": "file_search", "vector_store_ids": ["vs_1"]},
    {"type": "mcp", "server_label": "x", "server_url": "https://a.b", "require_approval": "never"},
    {"type": "local_shell"},
    {"type": "tool_search"},
]
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Changes files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
}
CRM = {"type": "namespace", "name": "mcp__crm__", "description": "Customers.", "tools": [TOOL]}
ONLY = {"type": "allowed_tools", "mode": "required"}
NUMBER, NULLABLE = (int, float), type(None)
# The fields of Open Responses' ResponseResource, all of them demanded, and what each may be.
RESOURCE: dict[str, Any] = {
    "id": str,
    "object": str,
    "created_at": int,
    "completed_at": (int, NULLABLE),
    "status": str,
    "incomplete_details": (dict, NULLABLE),
    "model": str,
    "previous_response_id": (str, NULLABLE),
    "instructions": (str, NULLABLE),
    "output": list,
    "error": (dict, NULLABLE),
    "tools": list,
    "tool_choice": (str, dict),
    "truncation": str,
    "parallel_tool_calls": bool,
    "text": dict,
    "top_p": NUMBER,
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "top_logprobs": int,
    "temperature": NUMBER,
    "reasoning": (dict, NULLABLE),
    "usage": (dict, NULLABLE),
    "max_output_tokens": (int, NULLABLE),
    "max_tool_calls": (int, NULLABLE),
    "store": bool,
    "background": bool,
    "service_tier": str,
    "metadata": dict,
    "safety_identifier": (str, NULLABLE),
    "prompt_cache_key": (str, NULLABLE),
}


def prompt(backend: FakeBackend) -> str:
    """What the last request has the model read."""
    return "".join(map(chr, backend.requests[-1].prompt))


async def ask(client: httpx.AsyncClient, **fields: object) -> dict[str, Any]:
    reply = await client.post("/v1/responses", json={"input": "hi", **fields})
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body


def called(name: str, **arguments: object) -> str:
    call = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{call}\n</tool_call>"


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
        ({"previous_response_id": "resp_1"}, "'resp_1' not found"),
        ({"input": []}, "no message"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "'msg_1' not found"),
        ({"background": True}, "not supported"),
        ({"conversation": "conv_1"}, "not supported"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "allowed: weather"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}}, "allowed: weather"),
        ({"tools": [TOOL], "tool_choice": {**ONLY, "tools": [{"type": "function", "name": "f"}]}}, "weather"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "reads only text"),
    ],
)
async def test_what_cannot_be_done_is_said(
    client: httpx.AsyncClient, fields: dict[str, object], said: str
) -> None:
    reply = await client.post("/v1/responses", json={"input": "hi", **fields})
    assert reply.status_code == 400
    assert said in reply.json()["error"]["message"]


async def test_a_response_has_every_field_that_open_responses_demands(client: httpx.AsyncClient) -> None:
    given = {
        "temperature": 0.5,
        "presence_penalty": 0.25,
        "frequency_penalty": -0.5,
        "max_tool_calls": 3,
        "safety_identifier": "u1",
        "prompt_cache_key": "k1",
        "metadata": {"a": "b"},
        "instructions": "Be brief.",
        "store": False,
    }
    body = await ask(client, **given, service_tier="flex")
    assert all(isinstance(body[name], kind) for name, kind in RESOURCE.items())
    assert {name: body[name] for name in given} == given
    assert body["completed_at"] >= body["created_at"]
    assert (body["service_tier"], body["background"], body["truncation"]) == ("default", False, "disabled")


async def test_penalties_reach_the_engine(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await ask(client, presence_penalty=0.25, frequency_penalty=-0.5)
    sampling = backend.requests[0].sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.25, -0.5)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, {"type": "text"}),
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "name": "x", "schema": {"type": "object"}},
            {
                "type": "json_schema",
                "name": "x",
                "description": None,
                "schema": {"type": "object"},
                "strict": False,
            },
        ),
    ],
)
async def test_the_format_is_repeated_whole(
    client: httpx.AsyncClient, backend: FakeBackend, given: object, told: object
) -> None:
    backend.model = replace(MODEL, context_length=2048)
    body = await ask(client, text={"format": given} if given else None)
    assert body["text"] == {"format": told, "verbosity": "medium"}


async def test_a_stream_ends_as_open_responses_says(client: httpx.AsyncClient) -> None:
    content = (await client.post("/v1/responses", json={"input": "hi", "stream": True})).text
    assert content.endswith("data: [DONE]\n\n")


async def test_tools_at_openai_are_left_out(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.model = replace(MODEL, context_length=4096)
    reply = await client.post("/v1/responses", json={"input": "hi", "tools": [*HOSTED, TOOL]})
    assert reply.headers["x-schema-ignored"].split(", ") == [f"tools: {tool['type']}" for tool in HOSTED]
    body = reply.json()
    assert [tool["name"] for tool in body["tools"]] == ["weather"]
    assert "weather" in prompt(backend) and "web_search" not in prompt(backend)
    await ask(client, tools=HOSTED)
    assert prompt(backend) == "user:hi\n"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_of_a_namespace_is_called_by_both_names(
    client: httpx.AsyncClient, backend: FakeBackend, stream: bool
) -> None:
    backend.model = replace(MODEL, context_length=4096)
    backend.words = (called("mcp__crm__weather", city="Oslo"),)
    asked: dict[str, Any] = {"model": MODEL.id, "input": "hi", "tools": [CRM], "stream": stream}
    reply = await sdk(client).responses.create(**asked)
    if stream:
        reply = [event async for event in reply][-1].response
    (call,) = reply.output
    assert (call.type, call.namespace, call.name) == ("function_call", "mcp__crm__", "weather")
    # Sent back, the call reads as the model wrote it.
    item = call.model_dump(mode="json", exclude_unset=True)
    await ask(client, input=[{"role": "user", "content": "hi"}, item], tools=[CRM], tool_choice="none")
    assert called("mcp__crm__weather", city="Oslo") in prompt(backend)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_custom_tool_is_given_text(
    client: httpx.AsyncClient, backend: FakeBackend, stream: bool
) -> None:
    backend.model = replace(MODEL, context_length=4096)
    backend.words = (called("apply_patch", input="*** Begin\n+x"),)
    asked: dict[str, Any] = {"model": MODEL.id, "input": "hi", "tools": [PATCH], "stream": stream}
    reply = await sdk(client).responses.create(**asked)
    if stream:
        events = [event async for event in reply]
        assert [event.type.removeprefix("response.") for event in events][2:-1] == [
            "output_item.added",
            "custom_tool_call_input.delta",
            "custom_tool_call_input.done",
            "output_item.done",
        ]
        reply = events[-1].response
    assert "start: /.+/" in prompt(backend)
    (call,) = reply.output
    assert (call.type, call.name, call.input) == ("custom_tool_call", "apply_patch", "*** Begin\n+x")
    output = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "Done!"}
    items = [{"role": "user", "content": "hi"}, call.model_dump(mode="json", exclude_unset=True), output]
    await ask(client, input=items, tools=[PATCH], tool_choice="none")
    assert prompt(backend).endswith(
        f"assistant:{called('apply_patch', input='*** Begin' + chr(10) + '+x')}\n"
        "user:<tool_response>\nDone!\n</tool_response>\n"
    )


async def test_only_allowed_tools_may_be_called(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.model = replace(MODEL, context_length=4096)
    other = {"type": "function", "name": "other", "parameters": {"type": "object"}}
    allowed = [{"type": "function", "name": "weather"}, {"type": "web_search"}]
    body = await ask(client, tools=[TOOL, other], tool_choice={**ONLY, "tools": allowed})
    assert body["tool_choice"] == {**ONLY, "tools": allowed}
    (request,) = backend.requests
    assert request.grammar is not None
    assert "weather" in request.grammar.text and "other" not in request.grammar.text


async def test_items_of_others_are_passed_over(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    items = [
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": "x"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "No. ", "annotations": []}, REFUSAL],
        },
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "reasoning", "id": "rs_2", "summary": []},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_image"}]},
    ]
    await ask(client, input=items)
    assert prompt(backend) == (
        "user:hi\n"
        f"assistant:No. Never.\n{called('f')}\n{called('g')}\n"
        "user:<tool_response>\n[input_image left out: this model reads only text]\n</tool_response>\n"
    )


REFUSAL = {"type": "refusal", "refusal": "Never."}


async def test_log_probabilities_come_with_the_text(client: httpx.AsyncClient) -> None:
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    reply = await sdk(client).responses.create(model=MODEL.id, input="hi", **asked)
    (part,) = reply.output[0].content
    assert [one.token for one in part.logprobs] == ["Hello", ", ", "world", "!"]
    assert [len(one.top_logprobs) for one in part.logprobs] == [2] * 4
    stream = await sdk(client).responses.create(model=MODEL.id, input="hi", stream=True, **asked)
    events = [event async for event in stream]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [one.token for event in deltas for one in event.logprobs] == ["Hello", ", ", "world", "!"]
    assert events[-1].response.output[0].content == [part]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_goes_on_from_another(
    client: httpx.AsyncClient, backend: FakeBackend, stream: bool
) -> None:
    responses = sdk(client).responses
    first = await responses.create(model=MODEL.id, input="hi", instructions="Be kind.", stream=stream)
    if stream:
        first = [event async for event in first][-1].response
    second = await responses.create(model=MODEL.id, input="more", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert prompt(backend) == "user:hi\nassistant:Hello, world!\nuser:more\n"
    reference = {"type": "item_reference", "id": second.output[0].id}
    await ask(client, input=[{"role": "user", "content": "?"}, reference])
    assert prompt(backend) == "user:?\nassistant:Hello, world!\n"
    assert await responses.retrieve(first.id) == first
    await responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await responses.retrieve(first.id)
    # What went on from it holds all that it needs.
    await responses.create(model=MODEL.id, input="on", previous_response_id=second.id)
    assert prompt(backend).endswith("user:more\nassistant:Hello, world!\nuser:on\n")


async def test_a_response_that_is_not_to_be_stored_is_not(client: httpx.AsyncClient) -> None:
    body = await ask(client, store=False)
    assert body["store"] is False
    reply = await client.get(f"/v1/responses/{body['id']}")
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "invalid_request_error")
    reply = await client.post("/v1/responses", json={"input": "a", "previous_response_id": body["id"]})
    error = reply.json()["error"]
    assert (error["param"], error["code"]) == ("previous_response_id", "previous_response_not_found")


async def test_input_tokens_are_those_a_response_uses(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.model = replace(MODEL, context_length=4096)
    first = await ask(client, input="x" * 50)
    asked = {"input": "hi", "instructions": "Be kind.", "tools": [TOOL], "previous_response_id": first["id"]}
    counted = await sdk(client).responses.input_tokens.count(model=MODEL.id, **asked)
    assert counted.input_tokens == (await ask(client, **asked))["usage"]["input_tokens"] > 50


async def test_a_prompt_that_is_too_long_is_an_event_of_a_stream(client: httpx.AsyncClient) -> None:
    """The status is what clients of whole replies read, the event what Codex understands."""
    reply = await client.post("/v1/responses", json={"input": "x" * 300})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "input")
    reply = await client.post("/v1/responses", json={"input": "x" * 300, "stream": True})
    assert reply.status_code == 200
    frames = [frame.partition("\ndata: ") for frame in reply.text.removesuffix("\n\n").split("\n\n")]
    assert [name for name, _, _ in frames[:-1]] == [
        "event: response.created",
        "event: response.in_progress",
        "event: response.failed",
    ]
    failed = json.loads(frames[2][2])["response"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "context_length_exceeded")
    assert failed["error"]["message"] == error["message"]


async def test_what_a_kept_response_answered_can_be_listed(client: httpx.AsyncClient) -> None:
    first = await ask(client, input="one")
    called = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    returned = {"type": "function_call_output", "call_id": "c1", "output": "42"}
    more = [{"role": "user", "content": "two", "id": "msg_2"}, called, returned]
    second = await ask(client, input=more, previous_response_id=first["id"])
    path = f"/v1/responses/{second['id']}/input_items"
    whole = (await client.get(path, params={"order": "asc"})).json()
    said = [(row["type"], row.get("role"), row.get("call_id")) for row in whole["data"]]
    assert said == [
        ("message", "user", None),
        ("message", "assistant", None),
        ("message", "user", None),
        ("function_call", None, "c1"),
        ("function_call_output", None, "c1"),
    ]
    assert whole["data"][0]["content"] == [{"type": "input_text", "text": "one"}]
    assert whole["data"][2]["id"] == "msg_2" and len({row["id"] for row in whole["data"]}) == 5
    last = (await client.get(path, params={"limit": 2})).json()
    assert last["data"] == whole["data"][:2:-1] and last["has_more"]
    rest = (await client.get(path, params={"after": last["last_id"]})).json()
    assert rest["data"] == whole["data"][2::-1] and not rest["has_more"]
    assert (await client.get("/v1/responses/resp_none/input_items")).status_code == 404
    official = openai.AsyncOpenAI(
        base_url="http://localhost/v1", api_key="x", http_client=client, max_retries=0
    )
    items = await official.responses.input_items.list(second["id"], order="asc")
    assert [item.type for item in items.data] == [row["type"] for row in whole["data"]]


async def test_the_oldest_turns_go_where_the_request_says_so(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    turns = [
        {"role": role, "content": f"{number}{role[0]} " + "x" * 30}
        for number in range(5)
        for role in ("user", "assistant")
    ][:-1]
    asked = {"input": turns, "instructions": "Be kind.", "max_output_tokens": 64}
    refused = await client.post("/v1/responses", json=asked)
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"
    body = await ask(client, **asked, truncation="auto")
    assert body["truncation"] == "auto" and body["status"] == "completed"
    text = prompt(backend)
    # 256 tokens, a quarter of them for the answer; a turn of the user's comes first.
    assert text.startswith("system:Be kind.\nuser:3u ") and "4u" in text and len(text) <= 192
    short = await ask(client, input="hi", truncation="auto")
    assert prompt(backend) == "user:hi\n" and short["truncation"] == "auto"
