"""No request, however broken, makes a 5xx or keeps the service busy."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serving.fake import FakeBackend
from vermilion.serving.http.app import ROUTES as DECLARED

pytestmark = pytest.mark.anyio
ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/fim/completions",
    "/v1/messages",
    "/v1/tokenize",
    "/v1/detokenize",
    "/infill",
    "/api/chat",
    "/api/generate",
    "/api/show",
    "/api/v0/chat/completions",
    "/api/v0/completions",
)
OPENAI_ERROR = {"message", "type", "param", "code"}
JSON = {"content-type": "application/json"}
VALID = b'{"messages": [{"role": "user", "content": "hi"}], "prompt": "hi"'


def check_error(route: str, body: dict[str, Any]) -> None:
    """Each face of the service refuses in its own shape."""
    if route.startswith("/model/"):
        assert isinstance(body["message"], str) and set(body) <= {"message", "originalStatusCode"}
        return
    if route.startswith("/endpoints/"):
        assert isinstance(body["Message"], str)
        assert set(body) <= {"Message", "OriginalStatusCode", "OriginalMessage"}
        return
    error = body["error"]
    if route.startswith("/v1/messages"):
        assert (body["type"], set(error)) == ("error", {"type", "message"})
    elif route.startswith("/api/") and not route.startswith("/api/v0"):
        assert isinstance(error, str) and set(body) == {"error"}
    else:
        assert set(error) == OPENAI_ERROR


@pytest.mark.parametrize("route", ROUTES[:2])
@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_type"),
        (b'"text"', "invalid_type"),
        (b"null", "invalid_type"),
        (b"\xff\xfe{}", "invalid_json"),
        (VALID + b', "user": "\xc3\x28"}', "invalid_json"),
        (VALID + b', "user": "\\ud800"}', "invalid_json"),
        (VALID + b', "temperature": NaN}', "invalid_json"),
        (VALID + b', "unknown": -Infinity}', "invalid_json"),
        (VALID + b', "temperature": 1e999}', "invalid_value"),
        (VALID + b', "decoding": {"threshold": 1e999}}', "invalid_value"),
        (VALID + b', "seed": ' + b"9" * 5000 + b"}", "invalid_json"),
        (VALID + b', "unknown": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
        (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, "invalid_json"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "request_too_complex"),
    ],
)
async def test_broken_json_is_a_400(client: httpx.AsyncClient, route: str, content: bytes, code: str) -> None:
    reply = await client.post(route, content=content, headers=JSON)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == code


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"model": 7}', b'{"a":' * 1000])
async def test_every_route_refuses_in_the_shape_its_clients_read(
    client: httpx.AsyncClient, route: str, content: bytes
) -> None:
    reply = await client.post(route, content=content, headers=JSON)
    assert reply.status_code == 400
    check_error(route, reply.json())


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "é", "multipart/x"]
)
async def test_other_content_types_are_a_415(client: httpx.AsyncClient, media_type: str) -> None:
    reply = await client.post(ROUTES[0], content=VALID + b"}", headers={"content-type": media_type.encode()})
    assert reply.status_code == 415
    assert reply.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize("headers", [{}, {"content-type": "Application/JSON; charset=utf-8"}])
async def test_json_is_taken_with_parameters_and_when_unnamed(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    assert (await client.post(ROUTES[0], content=VALID + b"}", headers=headers)).status_code == 200


async def test_a_huge_body_is_refused_while_it_arrives(open_client) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(10_000):
            sent += 1
            yield b" " * 1000

    async with open_client(max_body_bytes=50_000) as client:
        reply = await client.post(ROUTES[0], content=endless(), headers=JSON)
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "request_too_large"
    assert sent < 100


async def test_a_body_of_megabytes_is_read_when_it_is_allowed(client: httpx.AsyncClient) -> None:
    content = VALID + b', "unknown": "' + b"x" * 5_000_000 + b'"}'
    assert (await client.post(ROUTES[0], content=content, headers=JSON)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/chat", 404),
        ("POST", "/v1/embeddings", 501),
        ("GET", "/%ff%fe/../../etc/passwd", 404),
        ("GET", "/v1/models/%00%ff", 404),
        ("GET", "//", 200),
    ],
)
async def test_other_addresses_and_methods(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    reply = await client.request(method, path, follow_redirects=True)
    assert reply.status_code == status
    if status >= 400:
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


class Fuzzer:
    """Bodies that are nearly right: a valid one with a few parts replaced, dropped or damaged."""

    names = tuple(
        sorted({name for route in DECLARED if route.body for name in route.body.model_fields} | {"extra"})
    )

    odd = (
        None,
        True,
        0,
        -1,
        1,
        2**31,
        2**63,
        -(2**70),
        1.5,
        -0.0,
        1e308,
        "",
        "a",
        "\x00",
        "🙂" * 50,
        [],
        {},
        [[]],
    )

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def value(self, depth: int = 0) -> Any:
        if depth > 3 or self.random.random() < 0.6:
            return self.random.choice(self.odd)
        if self.random.random() < 0.5:
            return [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        keys = (
            "role",
            "content",
            "type",
            "text",
            "decoder",
            "threshold",
            "1",
            "-1",
            "9" * 30,
            "include_usage",
            "num_predict",
            "temperature",
            "filename",
            "images",
        )
        return {self.random.choice(keys): self.value(depth + 1) for _ in range(self.random.randrange(4))}

    def body(self) -> bytes:
        role = self.random.choice(("tool", "assistant"))
        fields: dict[str, Any] = {
            "messages": [{"role": "user", "content": "hi"}, {"role": role, "content": [{"text": "x"}]}],
            "prompt": "hi",
            "suffix": "",
            "model": "tiny-diffusion",
            "max_tokens": 5,
            "tokens": [104, 105],
            "input_prefix": "a",
            "input_extra": [{"filename": "x", "text": "y"}],
            "options": {"temperature": 0.5, "num_predict": 3, "decoding": {"threshold": 0.5}},
            "decoding": {"decoder": "threshold", "threshold": 0.5, "block_length": 3},
        }
        for _ in range(self.random.randrange(1, 4)):
            fields[self.random.choice(self.names)] = copy.deepcopy(self.value())
        if self.random.random() < 0.2:
            part = self.random.choice((fields["decoding"], fields["messages"]))
            if isinstance(part, dict):
                part[self.random.choice(("threshold", "max_steps", "branches", "odd"))] = self.value()
            elif isinstance(part, list):
                part.append(copy.deepcopy(self.value()))
        content = json.dumps(fields, ensure_ascii=self.random.random() < 0.5).encode()
        if self.random.random() < 0.2:
            place = self.random.randrange(len(content))
            garbage = bytes(self.random.randrange(256) for _ in range(self.random.randrange(4)))
            content = content[:place] + garbage + content[place + self.random.randrange(3) :]
        return content


async def test_thousands_of_fuzzed_requests_neither_fail_nor_hang(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    fuzzer = Fuzzer(seed=1)
    statuses: dict[int, int] = {}
    async with asyncio.timeout(60):
        for number in range(3000):
            content = fuzzer.body()
            route = ROUTES[number % len(ROUTES)]
            reply = await client.post(route, content=content, headers=JSON)
            assert reply.status_code < 500, content
            if reply.status_code != 200:
                check_error(route, reply.json())
                assert len(reply.text) < 2000
            statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
    assert statuses[200] > 300 and statuses[400] > 600, statuses
    assert backend.running == 0
