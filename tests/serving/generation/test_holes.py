"""POST /v1/infill: any number of holes, free and fixed, in one request."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from serving.fake import FakeBackend

pytestmark = pytest.mark.anyio


async def fill(client: httpx.AsyncClient, *parts: Any, **more: Any) -> httpx.Response:
    return await client.post("/v1/infill", json={"parts": parts, **more})


def plain(ids: Any) -> str:
    return "".join("_" if id is None else chr(id) for id in ids)


async def test_holes_see_what_was_filled_before_and_the_text_behind(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    parts = ["a(", {}, ")b(", {"tokens": 2}, ")c(", {"tokens": 3}, ")d(", {"max_tokens": 1}, ")e"]
    reply = (await fill(client, *parts)).json()
    assert reply["text"] == "a(Hello, world!)b(..)c(...)d(Hello)e"
    assert [hole["text"] for hole in reply["holes"]] == ["Hello, world!", "..", "...", "Hello"]
    assert [hole["finish_reason"] for hole in reply["holes"]] == ["stop", "stop", "stop", "length"]
    assert [hole["tokens"] for hole in reply["holes"]] == [4, 2, 3, 1]
    free, fixed, last = backend.requests
    assert (plain(free.prompt), plain(free.suffix)) == ("a(", ")b(")
    assert plain(fixed.prompt) == "a(Hello, world!)b("
    assert fixed.seeds is not None and plain(fixed.seeds.ids) == "__)c(___)d("
    assert (plain(last.prompt), plain(last.suffix)) == ("a(Hello, world!)b(..)c(...)d(", ")e")
    usage = reply["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len("a()b()c()d()e"), 10)


async def test_a_hole_may_stand_at_either_end(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert (await fill(client, {}, "x", {"tokens": 1})).json()["text"] == "Hello, world!x."
    assert plain(backend.requests[0].prompt) == "\n"


@pytest.mark.parametrize(
    ("parts", "fragment"),
    [
        (["no hole"], "hole"),
        ([{}, "", {}], "row"),
        ([], "parts"),
        (["x", {"tokens": 0}], "parts"),
        (["x" * 300, {}], "context"),
        (["x" * 200, {"tokens": 100}], "context"),
    ],
)
async def test_what_cannot_be_filled_is_refused(
    client: httpx.AsyncClient, parts: list[Any], fragment: str
) -> None:
    reply = await fill(client, *parts)
    assert reply.status_code == 400
    assert fragment in reply.json()["error"]["message"]


async def test_llama_cpps_route_is_another(client: httpx.AsyncClient) -> None:
    assert "content" in (await client.post("/infill", json={"input_prefix": "x"})).json()
    assert (await client.post("/v1/infill/", json={"parts": ["x", {}]})).json()["object"] == "infill"
