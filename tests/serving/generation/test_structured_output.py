"""Other servers' words for the form of an answer: honoured alike on every route, or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serving.fake import MODEL, FakeBackend
from serving.walking import fits
from vermilion.types import Grammar

pytestmark = pytest.mark.anyio
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
YES_OR_NO = 'root ::= answer\nanswer ::= "yes" | [n] "o" | "\\u00e9"'
DATE = "[0-9]{4}"
SAID, UNSAID = '{"n": 3}', '{"m": 3}'
FORMS: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "json_object"}}, '{"any": [1]}', "[1]"),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, SAID, UNSAID),
    ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, SAID, UNSAID),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, SAID, UNSAID),
    ({"response_format": {"type": "regex", "value": DATE}}, "1999", "199"),
    ({"response_format": {"type": "lark", "value": 'start: "yes"'}}, "yes", "no"),
    ({"response_format": {"type": "grammar", "grammar": YES_OR_NO}}, "no", "maybe"),
    ({"grammar": YES_OR_NO}, "é", "maybe"),
    ({"grammar": '%llguidance {}\nstart: "yes"'}, "yes", "no"),
    ({"json_schema": SCHEMA}, SAID, UNSAID),
    ({"json_schema": json.dumps(SCHEMA)}, SAID, UNSAID),
    ({"regex": DATE}, "1999", "199"),
    ({"ebnf": YES_OR_NO}, "yes", "maybe"),
    ({"guided_json": SCHEMA}, SAID, UNSAID),
    ({"guided_json": json.dumps(SCHEMA)}, SAID, UNSAID),
    ({"guided_regex": DATE}, "1999", "199"),
    ({"guided_choice": ["a.b", "größer\n|"]}, "größer\n|", "axb"),
    ({"guided_grammar": YES_OR_NO}, "yes", "maybe"),
    ({"guided_decoding_backend": "xgrammar", "guided_regex": DATE}, "1999", "199"),
    ({"structured_outputs": {"json": SCHEMA}}, SAID, UNSAID),
    ({"structured_outputs": {"regex": DATE, "disable_fallback": True}}, "1999", "199"),
    ({"structured_outputs": {"choice": ["a", "b"]}}, "b", "c"),
    ({"structured_outputs": {"grammar": YES_OR_NO}}, "no", "maybe"),
    ({"structured_outputs": {"json_object": True}}, '{"any": [1]}', "[1]"),
]


@pytest.fixture
def backend() -> FakeBackend:
    """Forms make long prompts; the fake counts a token per character."""
    return FakeBackend(model=replace(MODEL, context_length=8192))


async def grammar(
    client: httpx.AsyncClient, backend: FakeBackend, route: str, form: dict[str, Any]
) -> Grammar:
    asked = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "input_prefix": "hi", **form}
    reply = await client.post(route, json=asked)
    assert reply.status_code == 200, reply.text
    assert backend.requests[-1].grammar is not None
    return backend.requests[-1].grammar


@pytest.mark.parametrize(("form", "good", "bad"), FORMS, ids=lambda value: str(value)[:60])
async def test_a_form_is_kept_to(
    client: httpx.AsyncClient, backend: FakeBackend, form: dict[str, Any], good: str, bad: str
) -> None:
    held = await grammar(client, backend, "/v1/chat/completions", form)
    assert fits(held, good) and not fits(held, bad)
    for route in ("/v1/completions", "/v1/fim/completions", "/infill", "/api/v0/completions"):
        assert await grammar(client, backend, route, form) == held


@pytest.mark.parametrize(
    ("form", "param", "said"),
    [
        ({"guided_json": "{"}, "guided_json", "not JSON"),
        ({"guided_json": "[1]"}, "guided_json", "a JSON object"),
        ({"guided_choice": []}, "guided_choice", "1 to 1000"),
        ({"guided_choice": [""]}, "guided_choice", "none empty"),
        (
            {"guided_regex": DATE, "regex": DATE},
            "guided_regex",
            "regex and guided_regex: an answer has one form",
        ),
        (
            {"response_format": {"type": "json_object"}, "grammar": YES_OR_NO},
            "grammar",
            "response_format and grammar",
        ),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "white space"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs", "white space"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs", "grammar instead"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format",
            "json_schema.schema: this field is required",
        ),
        (
            {"response_format": {"type": "regex"}},
            "response_format",
            "value: this field is required for regex",
        ),
        ({"grammar": 'answer ::= "a"'}, "grammar", "No 'root' rule"),
        ({"grammar": "root ::= ("}, "grammar", "Expected"),
        ({"grammar": "root ::= " + "(" * 5000}, "grammar", "nested too deep"),
        ({"grammar": "root ::= " + " " * 100_000}, "grammar", "too many"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"strict": True, "schema": {"not": {"const": 1}}},
                }
            },
            "response_format",
            "response_format: #: not cannot be enforced: no grammar can hold it. Leave it out",
        ),
    ],
)
async def test_what_is_no_form_is_refused(
    client: httpx.AsyncClient, form: dict[str, Any], param: str, said: str
) -> None:
    reply = await client.post("/v1/completions", json={"prompt": "hi", **form})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert said in error["message"]


async def test_what_a_schema_asks_in_vain_is_said_in_a_header(client: httpx.AsyncClient) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    asked = {"messages": [{"role": "user", "content": "hi"}], "guided_json": schema}
    for more in ({}, {"stream": True}):
        reply = await client.post("/v1/chat/completions", json={**asked, **more})
        assert reply.headers["x-schema-ignored"] == "guided_json#/properties/a: uniqueItems"
    reply = await client.post("/v1/chat/completions", json={"messages": asked["messages"]})
    assert "x-schema-ignored" not in reply.headers


async def test_a_small_model_is_told_of_the_schema(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    for form in ({"guided_json": SCHEMA}, {"response_format": {"type": "json_object", "schema": SCHEMA}}):
        await grammar(client, backend, "/v1/chat/completions", form)
        assert json.dumps(SCHEMA) in "".join(map(chr, backend.requests[-1].prompt))


async def test_holes_take_no_form(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/infill", json={"parts": ["a", {}], "guided_regex": "a"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "guided_regex")
