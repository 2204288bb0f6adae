"""POST /v1/completions: raw prompts and gaps to fill."""

from __future__ import annotations

import httpx
import pytest

from serving.fake import FakeBackend, sse
from vermilion.serving.wire.openai_replies import TokenOffsets, completion_logprobs, scored
from vermilion.types import TokenInfo

pytestmark = pytest.mark.anyio


def codes(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


@pytest.mark.parametrize("prompt", ["hey", ["hey"], [104, 101, 121], [[104, 101, 121]]])
async def test_prompt_in_every_form(client: httpx.AsyncClient, backend: FakeBackend, prompt: object) -> None:
    reply = (await client.post("/v1/completions", json={"prompt": prompt})).json()
    assert backend.requests[0].prompt == codes("hey")
    assert reply["object"] == "text_completion"
    assert reply["choices"][0]["text"] == "Hello, world!"
    assert reply["usage"]["prompt_tokens"] == 3


async def test_a_suffix_makes_it_an_infill(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await client.post("/v1/completions", json={"prompt": "a(", "suffix": ")"})
    assert (backend.requests[0].prompt, backend.requests[0].suffix) == (codes("a("), codes(")"))


async def test_an_infill_at_the_top_of_a_file_has_something_on_its_left(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await client.post("/v1/completions", json={"prompt": "", "suffix": "x"})
    assert backend.requests[0].prompt == codes("\n")


async def test_the_suffix_takes_room_of_the_context(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await client.post("/v1/completions", json={"prompt": "x" * 100, "suffix": "y" * 100, "max_tokens": 500})
    assert backend.requests[0].sampling.max_tokens == 56
    reply = await client.post("/v1/completions", json={"prompt": "x" * 200, "suffix": "y" * 56})
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    assert reply.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    "prompt", ["", [], ["a", ""], [[1], [-2]], [-1], [0x110000], [True], [1.5], 7, None, {"a": 1}]
)
async def test_other_prompts_are_refused(client: httpx.AsyncClient, prompt: object) -> None:
    reply = await client.post("/v1/completions", json={"prompt": prompt})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "prompt"


async def test_stream_reads_the_same_as_the_reply(client: httpx.AsyncClient) -> None:
    body = {"prompt": "hey", "logprobs": 1, "n": 2}
    whole = (await client.post("/v1/completions", json=body)).json()
    reply = await client.post(
        "/v1/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}}
    )
    *chunks, usage = sse(reply.text)
    for index in range(2):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in mine) == whole["choices"][index]["text"]
        offsets = [offset for choice in mine[:-1] for offset in choice["logprobs"]["text_offset"]]
        assert offsets == whole["choices"][index]["logprobs"]["text_offset"] == [0, 5, 7, 12]
        assert mine[-1]["finish_reason"] == "stop"
    assert usage["usage"] == whole["usage"]


async def test_parts_of_a_character_keep_their_bytes_and_place() -> None:
    parts = [b"a", b"\xf0\x9f", b"\x99\x82b", b"\xe2\x80", b"c"]
    tokens = [TokenInfo(i, raw, -0.5, 0.6, 1, ((i, raw, -0.5),)) for i, raw in enumerate(parts)]
    assert [row["bytes"] for row in scored(tokens)] == [list(raw) for raw in parts]
    assert scored(tokens)[1]["token"] == "\ufffd"
    assert b"".join(parts).decode("utf-8", "replace") == "a\U0001f642b\ufffdc"
    for size in (1, 2, 5):  # however the answer comes in pieces
        offsets = TokenOffsets()
        chunks = [completion_logprobs(tokens[i : i + size], offsets) for i in range(0, len(tokens), size)]
        found = [offset for chunk in chunks for offset in chunk["text_offset"]]
        assert found == [0, 1, 1, 3, 4]
    assert chunks[0]["tokens"] == ["a", r"bytes:\xf0\x9f", r"bytes:\x99\x82\x62", r"bytes:\xe2\x80", "c"]
    assert list(chunks[0]["top_logprobs"][1]) == [r"bytes:\xf0\x9f"]


async def test_logprobs_are_parallel_lists_with_confidence_and_pass(client: httpx.AsyncClient) -> None:
    reply = (await client.post("/v1/completions", json={"prompt": "hey", "logprobs": 2})).json()
    logprobs = reply["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["Hello", ", ", "world", "!"]
    assert logprobs["top_logprobs"][0] == {"t0": -1.0, "t1": -2.0}
    assert logprobs["pass"] == [1, 2, 3, 4]
    assert logprobs["confidence"] == [0.5] * 4
