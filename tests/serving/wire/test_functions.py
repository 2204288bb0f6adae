"""OpenAI's functions and function_call, the earlier form of tools, and how many calls an answer may hold."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serving.fake import MODEL, FakeBackend, sse

pytestmark = pytest.mark.anyio
FUNCTION = {"name": "weather", "description": "Of a city", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
QUESTION = {"role": "user", "content": "hi"}


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(words=(CALL,), model=replace(MODEL, context_length=8192))


def prompt(backend: FakeBackend) -> str:
    return "".join(map(chr, backend.requests[-1].prompt))


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    reply = await client.post("/v1/chat/completions", json={"messages": [QUESTION], **fields})
    assert reply.status_code == 200, reply.text
    return reply


async def test_a_function_is_called_in_the_form_it_was_offered(client: httpx.AsyncClient) -> None:
    (choice,) = (await ask(client, functions=[FUNCTION])).json()["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'},
    }


async def test_a_stream_calls_it_so_too(client: httpx.AsyncClient) -> None:
    chunks = sse((await ask(client, functions=[FUNCTION], stream=True)).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    told = [delta["function_call"] for delta in deltas if "function_call" in delta]
    assert told[0] == {"name": "weather", "arguments": ""}
    assert "".join(one["arguments"] for one in told) == '{"city": "Oslo"}'
    assert not any("tool_calls" in delta for delta in deltas)
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"


@pytest.mark.parametrize(
    ("choice", "offered", "held"),
    [(None, True, False), ("auto", True, False), ("none", False, False), ({"name": "weather"}, True, True)],
)
async def test_the_earlier_choice_is_honoured(
    client: httpx.AsyncClient, backend: FakeBackend, choice: object, offered: bool, held: bool
) -> None:
    fields = {} if choice is None else {"function_call": choice}
    await ask(client, functions=[FUNCTION], **fields)
    assert ("weather" in prompt(backend)) == offered
    assert (backend.requests[-1].grammar is not None) == held


async def test_a_history_of_functions_is_read_as_one_of_tools(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    call = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    earlier = [
        QUESTION,
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "weather", "content": "rain"},
    ]
    present = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": "rain"},
    ]
    await ask(client, messages=earlier, functions=[FUNCTION])
    read = prompt(backend)
    await ask(client, messages=present, tools=[TOOL])
    assert read == prompt(backend)
    assert f"{CALL}\n" in read


@pytest.mark.parametrize(
    ("parallel", "several"),
    [({}, False), ({"parallel_tool_calls": False}, False), ({"parallel_tool_calls": True}, True)],
)
async def test_a_required_call_is_one_unless_several_are_asked_for(
    client: httpx.AsyncClient, backend: FakeBackend, parallel: dict[str, bool], several: bool
) -> None:
    await ask(client, tools=[TOOL], tool_choice="required", **parallel)
    grammar = backend.requests[-1].grammar
    assert grammar is not None and ('("\\n" call){0,3}' in grammar.text) == several


@pytest.mark.parametrize("diffusing", [True, "diff"])
async def test_a_canvas_that_is_not_streamed_is_one_reply(
    client: httpx.AsyncClient, backend: FakeBackend, diffusing: object
) -> None:
    backend.words = ("Hello", ", ", "world", "!")
    reply = await ask(client, diffusing=diffusing)
    assert reply.headers["content-type"] == "application/json"
    assert reply.json()["choices"][0]["message"]["content"] == "Hello, world!"
    assert json.loads(reply.text)["object"] == "chat.completion"
    assert not backend.requests[-1].canvas


async def test_a_refusal_in_the_history_is_text(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    said = {"role": "assistant", "content": [{"type": "refusal", "refusal": "Never."}]}
    await ask(client, messages=[QUESTION, said, QUESTION])
    assert prompt(backend) == "user:hi\nassistant:Never.\nuser:hi\n"


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_only_allowed_tools_are_offered(
    client: httpx.AsyncClient, backend: FakeBackend, mode: str
) -> None:
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}
    allowed = {"mode": mode, "tools": [{"type": "function", "function": {"name": "weather"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    await ask(client, tools=[TOOL, other], tool_choice=choice)
    assert "weather" in prompt(backend) and "other" not in prompt(backend)
    grammar = backend.requests[-1].grammar
    assert (grammar is not None and "weather" in grammar.text) is (mode == "required")
    allowed["tools"] = [{"type": "function", "function": {"name": "unknown"}}]
    reply = await client.post(
        "/v1/chat/completions", json={"messages": [QUESTION], "tools": [TOOL], "tool_choice": choice}
    )
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "tool_choice.allowed_tools.tools"
