"""How bodies may arrive: encodings, media types, addresses, nulls and whole numbers."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from serving.fake import FakeBackend
from vermilion.serving.http.app import ROUTES
from vermilion.serving.http.parsing import parse

pytestmark = pytest.mark.anyio
QUESTION = {"messages": [{"role": "user", "content": "hi"}]}
CONTENT = json.dumps(QUESTION).encode()
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("identity", bytes),
        ("", bytes),
    ],
)
async def test_packed_bodies_are_unpacked(client: httpx.AsyncClient, encoding: str, pack: Any) -> None:
    headers = {**JSON, "content-encoding": encoding}
    reply = await client.post("/v1/chat/completions", content=pack(CONTENT), headers=headers)
    assert reply.json()["choices"][0]["message"]["content"] == "Hello, world!"


@pytest.mark.parametrize(
    ("encoding", "content", "status", "code"),
    [
        ("gzip", gzip.compress(b" " * 5_000_000, mtime=0), 413, "request_too_large"),
        ("gzip", CONTENT, 400, "invalid_body"),
        ("gzip", gzip.compress(CONTENT, mtime=0)[:-9], 400, "invalid_body"),
        ("br", CONTENT, 415, "unsupported_encoding"),
        ("gzip, gzip", CONTENT, 415, "unsupported_encoding"),
    ],
)
async def test_a_packed_body_hides_no_more_than_the_limit(
    open_client, encoding: str, content: bytes, status: int, code: str
) -> None:
    async with open_client(max_body_bytes=1_000_000) as client:
        headers = {**JSON, "content-encoding": encoding}
        reply = await client.post("/v1/chat/completions", content=content, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


async def test_a_byte_order_mark_is_no_part_of_a_body(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/chat/completions", content=b"\xef\xbb\xbf" + CONTENT, headers=JSON)
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("path", "kind", "origin", "status"),
    [
        ("/api/chat", "application/x-www-form-urlencoded", None, 200),
        ("/api/chat", "text/plain", None, 200),
        ("/api/chat", "text/plain", "http://localhost", 415),
        ("/api/chat", "application/json", "http://localhost", 200),
        ("/v1/chat/completions", "text/plain", None, 415),
    ],
)
async def test_local_servers_clients_may_call_json_what_they_like(
    client: httpx.AsyncClient, path: str, kind: str, origin: str | None, status: int
) -> None:
    content = json.dumps({**QUESTION, "model": "tiny-diffusion", "stream": False})
    headers = {"content-type": kind} | ({"origin": origin} if origin else {})
    assert (await client.post(path, content=content, headers=headers)).status_code == status


@pytest.mark.parametrize(
    "path",
    [
        "//v1/chat/completions",
        "/v1//chat//completions/",
        "//chat/completions",
        "/beta/chat/completions",
        "//openai//deployments/tiny-diffusion/chat/completions",
    ],
)
async def test_addresses_joined_carelessly_are_understood(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.post(f"http://localhost{path}", json=QUESTION)).status_code == 200


@pytest.mark.parametrize(
    ("given", "allowed"), [(8.0, 8), (1.0, 1), (None, None), (8.5, "refused"), ("8", "refused")]
)
async def test_a_whole_number_may_have_a_fraction_of_nothing(
    client: httpx.AsyncClient, backend: FakeBackend, given: object, allowed: object
) -> None:
    reply = await client.post("/v1/completions", json={"prompt": "ab", "max_tokens": given})
    if allowed == "refused":
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "max_tokens")
    else:
        assert backend.requests[0].sampling.max_tokens == (allowed or 254)


async def test_no_limit_is_what_fits_the_context(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await client.post("/v1/completions", json={"prompt": "ab", "max_tokens": -1})
    await client.post("/v1/chat/completions", json={**QUESTION, "max_completion_tokens": -1})
    assert [request.sampling.max_tokens for request in backend.requests] == [254, 248]
    for wrong in (0, -2):
        reply = await client.post("/v1/completions", json={"prompt": "ab", "max_tokens": wrong})
        assert reply.json()["error"]["param"] == "max_tokens"


OPTIONAL = [
    (body, name if field.alias is None else field.alias)
    for body in dict.fromkeys(route.body for route in ROUTES if route.body)
    for name, field in body.model_fields.items()
    if not field.is_required()
]
NEEDED: dict[str, Any] = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    "prompt": "hi",
    "model": "m",
    "max_tokens": 8,
    "tokens": [1],
    "input": "hi",
    "questions": {"q": {"type": "noul"}},
    "state": "s",
    "request_id": "r",
    "user_action": "accept",
    "provider_name": "p",
    "provider_version": "1",
    "lora_name": "l",
    "lora_path": "p",
    "training_file": "f",
    "input_file_id": "f",
    "endpoint": "/v1/completions",
    "completion_window": "24h",
    "parts": ["a", {}],
}


@pytest.mark.parametrize(("body", "name"), OPTIONAL, ids=lambda value: getattr(value, "__name__", value))
def test_null_is_a_field_left_out(body: type[BaseModel], name: str) -> None:
    needed = {field.alias or key for key, field in body.model_fields.items() if field.is_required()}
    without = {key: NEEDED[key] for key in needed}
    plain = parse(json.dumps(without).encode(), body)
    assert parse(json.dumps({**without, name: None}).encode(), body) == plain


def test_null_deep_in_a_body_is_a_field_left_out() -> None:
    from vermilion.serving.wire.openai_bodies import ChatBody

    calls = [{"id": None, "type": None, "function": {"name": "f", "arguments": None}}]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    tool = {"type": None, "function": {"name": "f", "description": None, "parameters": {"default": None}}}
    body = parse(json.dumps({"messages": [message], "tools": [tool], "n": None}).encode(), ChatBody)
    assert body.messages[0].tool_calls[0].function.arguments == "{}"
    assert body.tools[0].function.parameters == {"default": None}
