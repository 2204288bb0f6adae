"""Which stop string ended an answer, in the words of every face of the service."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from serving.fake import FakeBackend, sse
from vermilion.types import Finish, Usage

pytestmark = pytest.mark.anyio
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
STOP = 'a "b"'


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(finish=Finish("stop", Usage(3, 0, 2, 1), stop_string=STOP))


async def ask(client: httpx.AsyncClient, route: str, **body: Any) -> Any:
    reply = await client.post(route, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.mark.parametrize("more", [{}, {"diffusing": True}])
async def test_openais_choices_name_it(client: httpx.AsyncClient, more: dict[str, Any]) -> None:
    for route, body in (("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "hi"})):
        (choice,) = (await ask(client, route, **body))["choices"]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", STOP)
        chunks = sse((await client.post(route, json={**body, **more, "stream": True})).text)
        last = [chunk["choices"][0] for chunk in chunks if chunk["choices"]][-1]
        assert (last["finish_reason"], last["stop_reason"]) == ("stop", STOP)


async def test_the_end_of_the_text_names_none(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.finish = None
    for route, body in (("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "hi"})):
        (choice,) = (await ask(client, route, **body))["choices"]
        assert choice["finish_reason"] == "stop" and "stop_reason" not in choice
    message = await ask(client, "/v1/messages", **CHAT)
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)


async def test_anthropics_message_names_it(client: httpx.AsyncClient) -> None:
    message = await ask(client, "/v1/messages", **CHAT)
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", STOP)
    stream = (await client.post("/v1/messages", json={**CHAT, "stream": True})).text
    datas = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
    (delta,) = [data["delta"] for data in datas if data["type"] == "message_delta"]
    assert delta == {"stop_reason": "stop_sequence", "stop_sequence": STOP}


async def test_llama_cpp_and_lm_studio_name_it_or_say_so(client: httpx.AsyncClient) -> None:
    infill = await ask(client, "/infill", input_prefix="a", input_suffix="b")
    assert (infill["stop_type"], infill["stopping_word"]) == ("word", STOP)
    figures = await ask(client, "/api/v0/chat/completions", **CHAT)
    assert figures["stats"]["stop_reason"] == "stopStringFound"
