"""Tool calls and structured output at the edge: prompts, grammars, replies, streams."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.fake import MODEL, FakeBackend, sse
from vermilion.serving.generation.tool_calls import (
    ArgumentsDelta,
    Piece,
    ToolCall,
    ToolCallReader,
    ToolCallStart,
)
from vermilion.serving.generation.tools import Tool, Toolbox, read_calls

pytestmark = pytest.mark.anyio


@pytest.fixture
def backend() -> FakeBackend:
    """Tools make long prompts; the fake counts a token per character."""
    return FakeBackend(model=replace(MODEL, context_length=8192))


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
SECOND = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
ASKED = {"messages": [{"role": "user", "content": "hi"}], "tools": [WEATHER, CLOCK]}
BOX = Toolbox((Tool("get_weather"), Tool("clock")))
TRICKY = '{"city": "\\"}</tool_call>\\\\", "n": [1, {"x": "{"}]}'
"""Arguments that hold what ends arguments and calls."""


def prompt(backend: FakeBackend) -> str:
    return "".join(map(chr, backend.requests[-1].prompt))


async def ask(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json={**ASKED, **body})


def shapes(pieces: list[Piece]) -> tuple[str, list[tuple[str, str]]]:
    texts = "".join(piece for piece in pieces if isinstance(piece, str))
    return texts, [(p.name, p.arguments) for p in pieces if isinstance(p, ToolCall) and p.whole]


def read_cut(reader: ToolCallReader, text: str, lengths: list[int]) -> list[Piece]:
    """What is told of `text` in pieces of these lengths, then of one character."""
    pieces, at, left = [], 0, list(lengths)
    while at < len(text):
        length = left.pop(0) if left else 1
        pieces += reader.push(text[at : at + length])
        at += length
    return pieces + reader.finish()


@given(
    st.sampled_from(
        [
            CALL,
            f"{CALL}\n{SECOND}",
            f"Let me see.\n{CALL}",
            "no call at all <tool",
            "a < b",
            '<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>',
            "<tool_call>\n{broken\n</tool_call> and on",
            f"{CALL} then half <tool_call>\n{{",
            "  ",
            "",
        ]
    ),
    st.lists(st.integers(1, 256), min_size=1, max_size=40),
)
def test_calls_are_read_alike_however_the_text_is_cut(text: str, lengths: list[int]) -> None:
    pieces = read_cut(BOX.reader(), text, lengths)
    content, calls = read_calls(text, BOX)
    assert shapes(pieces) == (content, [(call.name, call.arguments) for call in calls])
    for call in calls:
        assert call.name in ("get_weather", "clock")
        assert isinstance(json.loads(call.arguments), dict)


@given(
    st.sampled_from(
        [
            (CALL, 1),
            (f"{CALL}\n{SECOND}", 2),
            (CALL.replace('{"city": "Köln"}', TRICKY), 1),
            (CALL.removesuffix("}\n</tool_call>"), 1),
            (CALL.removesuffix('ln"}}\n</tool_call>'), 0),
            (CALL[:30], 0),
        ]
    ),
    st.lists(st.integers(1, 256), max_size=40),
)
def test_arguments_under_a_grammar_are_told_in_pieces_that_add_up(
    said: tuple[str, int], lengths: list[int]
) -> None:
    text, num_whole = said
    box = replace(BOX, demanded=True)
    pieces = read_cut(box.reader(), text, lengths)
    content, calls = read_calls(text, box)
    assert shapes(pieces) == (content, [(call.name, call.arguments) for call in calls])
    begun, told = None, ""
    for piece in pieces:
        assert not isinstance(piece, str)
        if isinstance(piece, ToolCallStart):
            assert begun is None
            begun, told = piece, ""
        elif isinstance(piece, ArgumentsDelta):
            told += piece.text
        else:
            assert (begun.id, begun.name, told) == (piece.id, piece.name, piece.arguments)
            assert not piece.whole or isinstance(json.loads(piece.arguments), dict)
            begun = None
    assert begun is None
    assert len(calls) == num_whole


@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        (CALL, "", ["get_weather"]),
        (f"Well.\n{CALL}\n{SECOND}", "Well.", ["get_weather", "clock"]),
        ('<tool_call>{"name": "rm", "arguments": {}}</tool_call>', None, []),
        (f"{CALL}\n<tool_call>\n{{", "", ["get_weather"]),
        ("plain ", "plain ", []),
    ],
)
def test_only_whole_calls_of_offered_tools_are_calls(
    text: str, content: str | None, names: list[str]
) -> None:
    said, calls = read_calls(text, BOX)
    assert said == (text if content is None else content)
    assert [call.name for call in calls] == names


async def test_a_call_becomes_a_message_with_tool_calls(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.words = (CALL, "\n", SECOND)
    choice = (await ask(client)).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    first, second = choice["message"]["tool_calls"]
    assert (first["type"], first["function"]["name"]) == ("function", "get_weather")
    assert json.loads(first["function"]["arguments"]) == {"city": "Köln"}
    assert first["id"] != second["id"]
    assert '"name": "get_weather"' in prompt(backend)
    assert backend.requests[0].grammar is None


@pytest.mark.parametrize("cut", [1, 256])
async def test_a_streamed_call_comes_by_index_and_adds_up(
    client: httpx.AsyncClient, backend: FakeBackend, cut: int
) -> None:
    text = f"Hm.\n{CALL}\n{SECOND}"
    backend.words = tuple(text[i : i + cut] for i in range(0, len(text), cut))
    chunks = sse((await ask(client, stream=True)).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Hm."
    calls: dict[int, dict[str, str]] = {}
    for delta in deltas:
        assert len(delta.get("tool_calls", ())) <= 1
        for part in delta.get("tool_calls", ()):
            call = calls.setdefault(
                part["index"], {"name": part["function"].get("name", ""), "arguments": ""}
            )
            call["arguments"] += part["function"]["arguments"]
            assert ("id" in part) == (part["function"].get("name") is not None)
    assert [call["name"] for call in calls.values()] == ["get_weather", "clock"]
    assert json.loads(calls[0]["arguments"]) == {"city": "Köln"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("cut", [1, 256])
async def test_arguments_under_a_grammar_come_as_they_settle(
    client: httpx.AsyncClient, backend: FakeBackend, cut: int
) -> None:
    arguments = json.dumps({"city": "x" * 600})
    text = CALL.replace('{"city": "Köln"}', arguments) + f"\n{SECOND}"
    backend.words = tuple(text[i : i + cut] for i in range(0, len(text), cut))
    chunks = sse((await ask(client, stream=True, tool_choice="required", max_tokens=2000)).text)
    parts = [part for c in chunks for part in c["choices"][0]["delta"].get("tool_calls", ())]
    assert max(len(chunk["choices"][0]["delta"].get("tool_calls", ())) for chunk in chunks) == 1
    assert [part["index"] for part in parts] == sorted(part["index"] for part in parts)
    for number, (name, whole) in enumerate([("get_weather", arguments), ("clock", "{}")]):
        first, *rest = [part for part in parts if part["index"] == number]
        assert (first["function"], first["type"]) == ({"name": name, "arguments": ""}, "function")
        assert first["id"]
        assert all(set(part) == {"index", "function"} for part in rest)
        assert "".join(part["function"]["arguments"] for part in rest) == whole
    # As many pieces as the text was settled in, not one when the call was whole.
    assert len([part for part in parts if part["index"] == 0]) >= len(arguments) // cut
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_call_that_the_limit_cuts_says_length(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.words = (CALL[:61], CALL[61:])
    body = {"stream": True, "tool_choice": "required", "max_tokens": 1}
    chunks = sse((await ask(client, **body)).text)
    told = [
        p["function"]["arguments"] for c in chunks for p in c["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert json.dumps({"city": "Köln"}, ensure_ascii=False).startswith("".join(told))
    assert len(told) == 2
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    choice = (await ask(client, **{**body, "stream": False})).json()["choices"][0]
    assert (choice["finish_reason"], choice["message"].get("tool_calls")) == ("length", None)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_other_faces_tell_arguments_as_they_settle_too(
    client: httpx.AsyncClient, backend: FakeBackend, path: str
) -> None:
    backend.words = tuple(f"{CALL}\n{SECOND}")
    tools = [one["function"] for one in (WEATHER, CLOCK)]
    if path == "/v1/messages":
        offers = [{"name": t["name"], "input_schema": t.get("parameters", {})} for t in tools]
        body = {
            "messages": ASKED["messages"],
            "tools": offers,
            "tool_choice": {"type": "any"},
            "max_tokens": 999,
        }
    else:
        body = {"input": "hi", "tools": [{"type": "function", **t} for t in tools], "tool_choice": "required"}
    lines = (await client.post(path, json={**body, "stream": True})).text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    if path == "/v1/messages":
        begun = [e["content_block"]["name"] for e in events if e["type"] == "content_block_start"]
        deltas = [
            (e["index"], e["delta"]["partial_json"]) for e in events if e["type"] == "content_block_delta"
        ]
        ended = [e["index"] for e in events if e["type"] == "content_block_stop"]
    else:
        begun = [e["item"]["name"] for e in events if e["type"] == "response.output_item.added"]
        kind = "response.function_call_arguments"
        deltas = [(e["output_index"], e["delta"]) for e in events if e["type"] == f"{kind}.delta"]
        ended = [e["output_index"] for e in events if e["type"] == "response.output_item.done"]
        assert [e["arguments"] for e in events if e["type"] == f"{kind}.done"] == ['{"city": "Köln"}', "{}"]
    assert (begun, ended) == (["get_weather", "clock"], [0, 1])
    assert "".join(text for at, text in deltas if at == 0) == '{"city": "Köln"}'
    assert "".join(text for at, text in deltas if at == 1) == "{}"
    assert len(deltas) == len('{"city": "Köln"}{}')


async def test_a_canvas_ends_in_calls(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.words = (CALL,)
    chunks = sse((await ask(client, stream=True, diffusing=True)).text)
    named = [c for c in chunks for part in c["choices"][0]["delta"].get("tool_calls", ()) if "id" in part]
    assert len(named) == 1
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert chunks[-2]["choices"][0]["delta"]["content"] == ""


async def test_half_a_call_is_never_told(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.words = (CALL[:30], CALL[30:])
    choice = (await ask(client, max_tokens=1)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert "tool_calls" not in choice["message"]
    assert choice["message"]["content"] == ""


@pytest.mark.parametrize(
    ("choice", "rules", "absent"),
    [
        ("required", ["call0", "call1"], "call2"),
        ({"type": "function", "function": {"name": "clock"}}, ['"clock"'], "get_weather"),
    ],
)
async def test_demanded_calls_are_held_to_by_a_grammar(
    client: httpx.AsyncClient, backend: FakeBackend, choice: Any, rules: list[str], absent: str
) -> None:
    await ask(client, tool_choice=choice)
    grammar = backend.requests[0].grammar
    assert grammar is not None
    assert grammar.kind == "lark"
    assert all(rule in grammar.text for rule in rules)
    assert absent not in grammar.text


async def test_no_tool_is_offered_where_none_may_be_called(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.words = (CALL,)
    reply = (await ask(client, tool_choice="none")).json()
    assert reply["choices"][0]["message"]["content"] == CALL
    assert "get_weather" not in prompt(backend)


async def test_small_models_can_be_made_to_call(open_client: Any, backend: FakeBackend) -> None:
    async with open_client(demanded_tools=("write", "clock")) as client:
        await ask(client)
        assert '"clock"' in backend.requests[0].grammar.text
        answered = [*ASKED["messages"], {"role": "tool", "content": "12:00", "tool_call_id": "x"}]
        await ask(client, messages=answered)
        assert backend.requests[1].grammar is None


async def test_earlier_calls_and_their_results_are_written_out(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    function = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": function}]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sunny"}]},
    ]
    assert (await ask(client, messages=messages)).status_code == 200
    text = prompt(backend)
    assert text.startswith("system:Be brief.\n\nYou may call")
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>' in text
    assert "user:<tool_response>\nsunny\n</tool_response>" in text


@pytest.mark.parametrize(
    ("wanted", "kind", "text"),
    [
        ({"type": "json_object"}, "json_object", ""),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}},
            "json_schema",
            "array",
        ),
        ({"type": "regex", "value": "[ab]+"}, "regex", "[ab]+"),
        ({"type": "lark", "value": 'start: "a"'}, "lark", "start"),
    ],
)
async def test_response_formats_become_grammars(
    client: httpx.AsyncClient, backend: FakeBackend, wanted: Any, kind: str, text: str
) -> None:
    assert (await ask(client, response_format=wanted)).status_code == 200
    grammar = backend.requests[0].grammar
    assert grammar is not None
    assert (grammar.kind, text in grammar.text) == (kind, True)
    await ask(client, response_format={"type": "text"})
    assert backend.requests[1].grammar is None


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "regex"}},
        {"response_format": {"type": "xml"}},
        {"tool_choice": {"type": "function", "function": {"name": "rm"}}},
        {"tools": [], "tool_choice": "required"},
        {"tools": [{"type": "function", "function": {"name": 'a"b'}}]},
        {"reasoning_effort": "utmost"},
    ],
)
async def test_mistakes_are_refused(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    reply = await ask(client, **body)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


async def test_effort_chooses_a_preset_unless_one_is_named(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    for body in ({"reasoning_effort": "instant"}, {"reasoning_effort": "high"}, {"preset": "ar"}):
        await ask(client, **body)
    await ask(client, reasoning_effort="instant", preset="ar")
    decoders = [request.decoding.decoder for request in backend.requests]
    assert decoders == ["relaxed", "lossless", "ar", "ar"]
    reply = (await ask(client, reasoning_summary=True)).json()
    assert reply["reasoning_summary"] == {"content": None, "status": "unavailable"}


async def test_differences_rebuild_every_frame(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.words = ("Hel", "lo ", "wor", "ld", "! " * 40)
    body = {"messages": ASKED["messages"]}
    whole = sse(
        (await client.post("/v1/chat/completions", json={**body, "stream": True, "diffusing": True})).text
    )
    cut = sse(
        (await client.post("/v1/chat/completions", json={**body, "stream": True, "diffusing": "diff"})).text
    )
    text, rebuilt = "", []
    for chunk in cut[:-1]:
        start, end, piece = chunk["diffusion_meta"]["diff"]
        text = text[:start] + piece + text[end:]
        rebuilt.append(text)
        assert "content" not in chunk["choices"][0]["delta"]
    assert rebuilt == [chunk["choices"][0]["delta"]["content"] for chunk in whole[:-1]]
