"""Several prompts in one completion, the prompt said again, the best of several answers."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from serving.fake import FakeBackend, sse
from vermilion.types import Event, Finish, Request, Text, TokenInfo, Usage

pytestmark = pytest.mark.anyio


class Echoing(FakeBackend):
    """Answers with the prompt in capitals; a choice's seed decides how likely that was."""

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        text = "".join(map(chr, request.prompt)).upper()
        likely = math.log(0.1 + request.sampling.seed % 5 / 10)
        token = TokenInfo(1, text, likely, 0.5, 1)
        usage = Usage(len(request.prompt), 1, 2, 1)
        yield Text(
            f"{text}{request.sampling.seed}", (token,) if request.sampling.logprobs is not None else ()
        )
        yield Finish("stop", usage)


@pytest.fixture
def backend() -> FakeBackend:
    return Echoing()


async def ask(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    reply = await client.post("/v1/completions", json={"seed": 3, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["AB3"]),
        (["ab"], ["AB3"]),
        ([97, 98], ["AB3"]),
        ([[97, 98]], ["AB3"]),
        (["ab", "c"], ["AB3", "C3"]),
        ([[97], [98, 99]], ["A3", "BC3"]),
        (["ab", [99]], ["AB3", "C3"]),
    ],
)
async def test_each_prompt_has_an_answer(client: httpx.AsyncClient, prompt: Any, texts: list[str]) -> None:
    reply = await ask(client, prompt=prompt)
    assert [(choice["index"], choice["text"]) for choice in reply["choices"]] == [*enumerate(texts)]


async def test_choices_of_a_prompt_stand_together_and_count_it_once(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = {"prompt": ["ab", "cde"], "n": 2, "stream_options": {"include_usage": True}}
    reply = await ask(client, **body)
    assert [choice["text"] for choice in reply["choices"]] == ["AB3", "AB4", "CDE3", "CDE4"]
    assert len({request.id for request in backend.requests}) == 4
    told = sse((await client.post("/v1/completions", json={"seed": 3, "stream": True, **body})).text)
    for usage in (reply["usage"], told[-1]["usage"]):
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 8)
        assert usage["prompt_tokens_details"] == {"cached_tokens": 2}
    assert {chunk["choices"][0]["index"] for chunk in told[:-1]} == {0, 1, 2, 3}


@pytest.mark.parametrize("prompt", [["ab", "c"], [[97, 98], [99]]])
async def test_an_echo_begins_with_the_prompt(client: httpx.AsyncClient, prompt: Any) -> None:
    reply = await ask(client, prompt=prompt, echo=True, n=2)
    texts = ["abAB3", "abAB4", "cC3", "cC4"]
    assert [choice["text"] for choice in reply["choices"]] == texts
    body = {"prompt": prompt, "echo": True, "n": 2, "seed": 3, "stream": True}
    told = ["", "", "", ""]
    for chunk in sse((await client.post("/v1/completions", json=body)).text):
        told[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert told == texts


async def test_the_best_of_several_answers_are_sent_and_all_are_counted(client: httpx.AsyncClient) -> None:
    reply = await ask(client, prompt=["ab", "c"], best_of=4, n=2)
    assert [choice["text"] for choice in reply["choices"]] == ["AB4", "AB3", "C4", "C3"]
    assert reply["choices"][0]["logprobs"] is None
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (3, 16)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"prompt": ["a", 1]}, "prompt", "token ids"),
        ({"prompt": []}, "prompt", "at least one token"),
        ({"prompt": ["a", ""]}, "prompt", "at least one token"),
        ({"prompt": ["a"] * 33, "n": 2}, "prompt", "at most 64 answers"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "echo", "where logprobs is given"),
        ({"prompt": "a", "best_of": 1, "n": 2}, "best_of", "at least n, here 2"),
        ({"prompt": "a", "best_of": 2, "stream": True}, "best_of", "in a stream"),
        ({"prompt": "a", "best_of": 9}, "best_of", "8"),
    ],
)
async def test_what_contradicts_itself_is_refused(
    client: httpx.AsyncClient, body: dict[str, Any], param: str, said: str
) -> None:
    reply = await client.post("/v1/completions", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert said in error["message"]
