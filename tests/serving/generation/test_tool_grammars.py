"""The form of calls: references, schemas that cannot be held, strict tools, stop strings, logprobs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest
from llguidance import LLMatcher

from serving.fake import FakeBackend, sse
from serving.generation.test_tools import ASKED, CLOCK, WEATHER, ask, backend
from serving.walking import fits
from vermilion.decoding.compile_worker import source_of
from vermilion.decoding.grammar import rule_at_fault
from vermilion.serving.generation.tools import Tool, Toolbox
from vermilion.types import Decoding

__all__ = ["backend"]
pytestmark = pytest.mark.anyio


def fun(name: str, parameters: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def said(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.mark.parametrize(
    ("parameters", "good", "bad"),
    [
        (
            {"type": "object", "properties": {"next": {"$ref": "#"}, "n": {"type": "integer"}}},
            '{"next": {"next": {"n": 1}}}',
            '{"next": {"name": "f"}}',
        ),
        (
            {"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"$ref": "#/properties/a"}}},
            '{"b": 2}',
            '{"b": 3}',
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"$ref": "#/properties/a/$defs/x", "$defs": {"x": {"const": 1}}}},
            },
            '{"a": 1}',
            '{"a": 2}',
        ),
        (
            {"properties": {"a": {"$ref": "#/definitions/x"}}, "definitions": {"x": {"type": "null"}}},
            '{"a": null}',
            '{"a": 1}',
        ),
        (None, "{}", '{"a": 1}'),
        ({}, "{}", '{"a": 1}'),
        ({"type": "object", "properties": []}, "{}", '{"a": 1}'),
        ({"type": "object", "properties": None}, "{}", '{"a": 1}'),
        ({"type": "string"}, '{"a": 1}', '"a"'),
        ({"type": "object"}, '{"a": 1}', "[]"),
    ],
)
async def test_references_resolve_within_the_tools_own_schema(
    client: httpx.AsyncClient, backend: FakeBackend, parameters: Any, good: str, bad: str
) -> None:
    tools = [fun("f", parameters), fun("other", {"properties": {"a": {"type": "string"}}})]
    reply = await ask(client, tools=tools, tool_choice="required")
    assert reply.status_code == 200, reply.text
    grammar = backend.requests[-1].grammar
    assert grammar is not None and grammar.closes
    assert fits(grammar, said("f", good)) and not fits(grammar, said("f", bad))
    assert fits(grammar, said("other", '{"a": "x"}'))


NEVER = {"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}
HARD = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?=x)"}}, "required": ["a"]}


async def test_one_tool_that_cannot_be_held_to_leaves_the_others(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    reply = await ask(client, tools=[WEATHER, fun("hard", HARD)], tool_choice="required")
    assert reply.headers["x-schema-ignored"] == "hard#/properties/a: pattern"
    assert fits(backend.requests[-1].grammar, said("hard", '{"a": "any"}'))
    for choice in ("required", "auto"):
        strict = await ask(client, tools=[WEATHER, fun("hard", HARD, strict=True)], tool_choice=choice)
        assert strict.status_code == 400
        assert strict.json()["error"]["message"].startswith("tools: hard: #/properties/a: pattern cannot be")


def test_a_grammar_that_cannot_be_used_names_the_tool() -> None:
    tools = (Tool("good", parameters=WEATHER["function"]["parameters"]), Tool("Bad-1", parameters=NEVER))
    grammar = Toolbox(tools, demanded=True).grammar
    assert grammar is not None
    refused = LLMatcher.validate_grammar(source_of("lark", grammar.text))
    assert rule_at_fault(grammar, refused) == " (in the rule body1_bad_1)"


async def test_a_strict_tool_is_held_to_where_the_model_may_choose(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    number = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    await ask(client, tools=[fun("f", number, strict=True), CLOCK], parallel_tool_calls=True)
    grammar = backend.requests[-1].grammar
    assert grammar is not None and not grammar.closes
    call, wrong = said("f", '{"n": 3}'), said("f", '{"n": "3"}')
    for text in ("", "Just <b>text</b>.", f"Let me see.\n{call}", f"{call}\n{said('clock', '{}')} Done."):
        assert fits(grammar, text), text
    for text in (wrong, f"Well. {wrong}", said("rm", "{}"), "<tool_call>", f"{call}{wrong}"):
        assert not fits(grammar, text), text
    await ask(client, tools=[fun("f", number, strict=True)])
    assert fits(backend.requests[-1].grammar, call) and not fits(
        backend.requests[-1].grammar, f"{call}\n{call}"
    )
    await ask(client, tools=[fun("f", number)])
    assert backend.requests[-1].grammar is None


async def test_a_model_without_a_next_token_is_held_to_a_strict_tool_too(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    presets = {"fast": Decoding("threshold")}
    backend.model = replace(backend.model, decoders=("threshold",), presets=presets, default_preset="fast")
    reply = await ask(client, tools=[fun("f", {"type": "object"}, strict=True)])
    assert "x-schema-ignored" not in reply.headers
    assert backend.requests[-1].grammar is not None


async def test_stop_strings_count_outside_of_calls(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await ask(client, stop=["}"])
    sampling = backend.requests[-1].sampling
    assert (sampling.stop, sampling.stop_outside) == (("}",), ("<tool_call>", "</tool_call>"))
    await client.post("/v1/chat/completions", json={"messages": ASKED["messages"], "stop": ["}"]})
    assert backend.requests[-1].sampling.stop_outside is None


@pytest.mark.parametrize("choice", ["required", "auto"])
async def test_a_stream_has_every_tokens_logprobs(
    client: httpx.AsyncClient, backend: FakeBackend, choice: str
) -> None:
    pieces = (
        "<tool_call>\n",
        '{"name": "get_weather", "argu',
        'ments": {"city": ',
        '"K"}',
        "}\n</tool",
        "_call>",
    )
    backend.words = pieces
    body = {"tool_choice": choice, "logprobs": True}
    whole = (await ask(client, **body)).json()["choices"][0]
    chunks = sse((await ask(client, **body, stream=True)).text)
    told = [
        row for chunk in chunks for row in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert whole["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert [row["pass"] for row in told] == [1, 2, 3, 4, 5, 6]
    assert told == whole["logprobs"]["content"]
