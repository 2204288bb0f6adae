"""What cannot fit is refused before it is worked on; what takes long is done off the event loop."""

from __future__ import annotations

from dataclasses import replace
from time import thread_time

import httpx
import pytest

from serving.fake import MODEL, FakeBackend, FakeTokenizer
from vermilion.serving.generation.merge import merged
from vermilion.serving.http.parsing import MAX_OBJECTS
from vermilion.serving.wire.mercury_bodies import untemplated

pytestmark = pytest.mark.anyio
QUESTION = {"messages": [{"role": "user", "content": "hi"}]}
CONTEXT = 4096
TOO_LONG = "a" * (CONTEXT * FakeTokenizer.longest_token_bytes + 1)
LONG = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": TOO_LONG}]},
    "/v1/completions": {"prompt": TOO_LONG},
    "/v1/fim/completions": {"prompt": "a", "suffix": TOO_LONG},
    "/v1/messages": {"messages": [{"role": "user", "content": TOO_LONG}], "max_tokens": 4},
    "/v1/responses": {"input": TOO_LONG},
    "/api/chat": {"messages": [{"role": "user", "content": TOO_LONG}]},
    "/infill": {"input_prefix": TOO_LONG, "input_suffix": ""},
    "/v1/infill": {"parts": [TOO_LONG, {}]},
    "/v1/tokenize": {"prompt": TOO_LONG},
    "/v1/decisions": {"state": TOO_LONG, "questions": {"q": {"type": "noul"}}},
    "/v1/apply/completions": {"messages": [{"role": "user", "content": TOO_LONG}]},
}


@pytest.mark.parametrize("path", LONG)
async def test_a_text_that_cannot_fit_is_refused_without_being_tokenised(
    client: httpx.AsyncClient, backend: FakeBackend, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = FakeTokenizer.encode
    seen: list[int] = []

    def noted(self: FakeTokenizer, text: str, special: bool = False) -> list[int]:
        seen.append(len(text))
        return encode(self, text, special)

    backend.model = replace(MODEL, context_length=CONTEXT)
    monkeypatch.setattr(FakeTokenizer, "encode", noted)
    reply = await client.post(path, json={"model": MODEL.id, **LONG[path]})
    assert reply.status_code == 400 and f" {CONTEXT} " in reply.text
    assert max(seen, default=0) < len(TOO_LONG) / 2


async def test_bodies_of_too_many_parts_are_refused(client: httpx.AsyncClient) -> None:
    for part, code in (("{}", "request_too_complex"), ("1", "request_too_complex")):
        content = '{"messages": [' + ",".join([part] * 500_000) + "]}"
        headers = {"content-type": "application/json"}
        reply = await client.post("/v1/chat/completions", content=content, headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, code)
    messages = [{"role": "user", "content": ""}] * (MAX_OBJECTS // 4)
    reply = await client.post("/v1/chat/completions", json={"messages": messages})
    assert reply.status_code == 400 and "at most 4096" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"stop": ["a" * 1000, "b" * 1000, "c" * 49]}, "stop"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
    ],
)
async def test_stop_strings_and_biases_have_limits(
    client: httpx.AsyncClient, given: dict[str, object], param: str
) -> None:
    reply = await client.post("/v1/chat/completions", json={**QUESTION, **given})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_the_marks_of_a_gap_are_found_in_one_go() -> None:
    begun_s = thread_time()
    assert untemplated("<|fim_suffix|>" * 20_000) is None
    assert untemplated("a<|fim_suffix|>" * 20_000 + "b<|fim_middle|>") == (
        ("a<|fim_suffix|>" * 20_000).removesuffix("<|fim_suffix|>"),
        "b",
    )
    assert thread_time() - begun_s < 1


def test_putting_hunks_together_is_linear() -> None:
    original = "".join(f"line {number}\n" for number in range(80_000))
    hunks = [f"line {number * 4}\nnew {number}\nline {number * 4 + 1}\n" for number in range(20_000)]
    begun_s = thread_time()
    whole = merged(original, "# ... existing code ...\n".join(hunks))
    assert merged("a\n", " " * 30_000 + "x") is None
    assert thread_time() - begun_s < 2
    assert whole is not None and whole.count("\n") == 100_000
    assert whole.startswith("line 0\nnew 0\nline 1\nline 2\nline 3\nline 4\nnew 1\n")
