"""Mercury's next edit and apply: layouts, fences, merges."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest

from serving.fake import MODEL, FakeBackend, sse
from vermilion.serving.generation.merge import merged

pytestmark = pytest.mark.anyio
HISTORY = "<|edit_diff_history|>\n--- a/b.py\n-x\n+y\n<|/edit_diff_history|>"
SNIPPETS = "<|recently_viewed_code_snippets|>\n\n<|/recently_viewed_code_snippets|>\n\n"
INSIDE = (
    f"{SNIPPETS}<|current_file_content|>\ncurrent_file_path: b.py\nbefore\n"
    f"<|code_to_edit|>\nx = 1<|cursor|>\n<|/code_to_edit|>\nafter\n<|/current_file_content|>\n\n{HISTORY}"
)
BEHIND = (
    f"{SNIPPETS}<|current_file_content|>\nbefore\nx = 1\nafter\n<|/current_file_content|>\n\n"
    f"<|code_to_edit|>\nx = 1<|cursor|>\n<|/code_to_edit|>\n\n{HISTORY}"
)
ORIGINAL = "import os\n\ndef a():\n    return 1\n\ndef b():\n    return 2\n"


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(model=replace(MODEL, context_length=4096), words=("x = 1\n", "y = 2"))


async def ask(client: httpx.AsyncClient, route: str, text: str, **more: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], **more}
    return await client.post(f"/v1/{route}/completions", json=body)


def applied(original: str, snippet: str) -> str:
    return (
        f"<|original_code|>\n{original}\n<|/original_code|>\n\n"
        f"<|update_snippet|>\n{snippet}\n<|/update_snippet|>"
    )


async def test_a_region_alone_is_the_file(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    alone = "<|code_to_edit|>\nx = 1<|cursor|>\n<|/code_to_edit|>"
    reply = (await ask(client, "edit", alone)).json()
    assert reply["choices"][0]["message"]["content"] == "```\nx = 1\ny = 2\n```"
    prompt = "".join(map(chr, backend.requests[0].prompt))
    assert prompt.count("```\nx = 1\n```") == 2
    assert "<|" not in prompt


@pytest.mark.parametrize("text", [INSIDE, BEHIND])
async def test_both_layouts_give_the_region_in_a_bare_fence(
    client: httpx.AsyncClient, backend: FakeBackend, text: str
) -> None:
    reply = (await ask(client, "edit", text)).json()
    assert reply["object"] == "edit.completion"
    assert reply["choices"][0]["message"]["content"] == "```\nx = 1\ny = 2\n```"
    request = backend.requests[0]
    prompt = "".join(map(chr, request.prompt))
    assert "before\nx = 1\nafter" in prompt
    assert "<|" not in prompt
    assert prompt.endswith("```\n")
    assert "".join(map(chr, request.existing)) == "x = 1\n```"
    assert request.sampling.stop == ("\n```",)


@pytest.mark.parametrize("said", ["x = 1", "x = 1\n", "None", ""])
async def test_a_region_that_stays_is_none(
    client: httpx.AsyncClient, backend: FakeBackend, said: str
) -> None:
    backend.words = (said,)
    reply = (await ask(client, "edit", INSIDE)).json()
    assert reply["choices"][0]["message"]["content"] == "None"


async def test_a_stream_may_be_asked_for(client: httpx.AsyncClient) -> None:
    for route, text in (("edit", INSIDE), ("apply", applied("a", "b"))):
        chunks = sse((await ask(client, route, text, stream=True)).text)
        content = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        assert content == ("```\nx = 1\ny = 2\n```" if route == "edit" else "x = 1\ny = 2")


async def test_continues_messages_are_understood(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    messages = [
        {"role": "system", "content": "You are Mercury."},
        {"role": "user", "content": f"{INSIDE}\n\n<|!@#IS_NEXT_EDIT!@#|>"},
    ]
    assert (await client.post("/edit/completions", json={"messages": messages})).status_code == 200
    free = "ORIGINAL CODE: ...\nApply the change.<|!@#IS_APPLY!@#|>"
    assert (await ask(client, "apply", free, stream=True)).status_code == 200
    assert "IS_APPLY" not in "".join(map(chr, backend.requests[1].prompt))


@pytest.mark.parametrize(
    ("route", "text", "tag"),
    [
        ("edit", "change it", "code_to_edit"),
        ("edit", INSIDE.replace("<|/current_file_content|>", ""), "current_file_content"),
        ("edit", INSIDE.replace("<|/code_to_edit|>", ""), "code_to_edit"),
        ("apply", "<|original_code|>\nx\n<|/original_code|>", "update_snippet"),
    ],
)
async def test_missing_tags_are_named(client: httpx.AsyncClient, route: str, text: str, tag: str) -> None:
    reply = await ask(client, route, text)
    assert reply.status_code == 400
    assert tag in reply.json()["error"]["message"]


async def test_more_than_one_message_is_refused(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": INSIDE}] * 2
    reply = await client.post("/v1/edit/completions", json={"messages": messages})
    assert reply.status_code == 400


async def test_a_certain_merge_asks_no_model(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    snippet = "# ... existing code ...\ndef b():\n    print()\n    return 2"
    reply = (await ask(client, "apply", applied(ORIGINAL, snippet))).json()
    assert reply["object"] == "apply.completion"
    assert reply["choices"][0]["message"]["content"] == ORIGINAL.replace(
        "def b():\n", "def b():\n    print()\n"
    )
    assert reply["usage"]["diffusion"]["passes"] == 0
    assert reply["usage"]["prompt_tokens"] > len(ORIGINAL)
    assert not backend.requests


async def test_an_uncertain_merge_is_the_models(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    reply = (await ask(client, "apply", applied("a\na\n", "a\nb"))).json()
    assert reply["choices"][0]["message"]["content"] == "x = 1\ny = 2"
    assert backend.requests[0].existing


@pytest.mark.parametrize(
    ("original", "snippet", "whole"),
    [
        ("a\nb\nc\n", "b\nx\nc", "a\nb\nx\nc\n"),
        ("a\r\nb\r\nc", "a\nx\nb", "a\r\nx\r\nb\r\nc"),
        ("a\nb\nc\nd", "// ... existing code ...\nb\nB\nc\n// ... rest of the file ...", "a\nb\nB\nc\nd"),
        ("a\nb\nc\nd\n", "a\n1\nb\n/* ... existing code ... */\nd\n", "a\n1\nb\nc\nd\n"),
        ("a\na\n", "a\nx", None),
        ("a\nb\n", "b\na", None),
        ("a\n", "z", None),
        ("a\n", "", None),
        ("a\r\nb\r\nc", "a\n# ... existing code ...\nc\nd\nc", "a\r\nb\r\nc\r\nd\r\nc"),
        ("a\r\nb\r\nc", "b\nx\nc", "a\r\nb\r\nx\r\nc"),
        ("a\rb\rc\r", "b\nx\nc", "a\rb\rx\rc\r"),
        ("p\x0cq\u2028r\x85s\nb\n", "p\x0cq\u2028r\x85s\nx\nb", "p\x0cq\u2028r\x85s\nx\nb\n"),
    ],
)
def test_merges(original: str, snippet: str, whole: str | None) -> None:
    assert merged(original, snippet) == whole
