"""The faces of Ollama and LM Studio, by which a desktop application finds a local model."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serving.fake import FakeBackend, sse

pytestmark = pytest.mark.anyio
MODEL = {"model": "tiny-diffusion:latest"}
QUESTION = {**MODEL, "messages": [{"role": "user", "content": "hi"}]}
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


def lines(content: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]


@pytest.mark.parametrize("accept", ["*/*", "text/plain", ""])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_ollamas_clients_are_told_it_runs(client: httpx.AsyncClient, accept: str, method: str) -> None:
    reply = await client.request(method, "/", headers={"accept": accept})
    assert (reply.status_code, reply.text) == (200, "Ollama is running" if method == "GET" else "")


async def test_a_browser_is_shown_the_reference(client: httpx.AsyncClient) -> None:
    reply = await client.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert reply.headers["location"] == "/console"


async def test_ollama_lists_and_shows_the_model(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/version")).json()["version"].count(".") == 2
    (row,) = (await client.get("/api/tags")).json()["models"]
    assert row["name"] == row["model"] == "tiny-diffusion:latest"
    assert len(row["digest"]) == 64
    shown = (await client.post("/api/show", json=MODEL)).json()
    architecture = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{architecture}.context_length"] == 256
    assert shown["capabilities"] == ["completion", "insert", "tools"]
    assert (await client.post("/api/show", json={"name": "other"})).status_code == 404


async def test_ollama_chats_in_lines_unless_told_otherwise(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    reply = await client.post("/api/chat", json=QUESTION)
    assert reply.headers["content-type"] == "application/x-ndjson"
    *pieces, last = lines(reply.text)
    assert "".join(piece["message"]["content"] for piece in pieces) == "Hello, world!"
    assert not any(piece["done"] for piece in pieces)
    whole = (await client.post("/api/chat", json={**QUESTION, "stream": False})).json()
    assert whole["message"] == {"role": "assistant", "content": "Hello, world!"}
    for final in (last, whole):
        assert (final["done"], final["done_reason"]) == (True, "stop")
        assert (final["prompt_eval_count"], final["eval_count"]) == (8, 4)
        assert all(type(final[name]) is int for name in DURATIONS)
        assert final["total_duration"] == pytest.approx(
            final["prompt_eval_duration"] + final["eval_duration"], abs=2
        )
    assert backend.requests[0].prompt == backend.requests[1].prompt


async def test_ollamas_options_reach_the_engine(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    options = {
        "num_predict": 2,
        "temperature": 0.5,
        "seed": 7,
        "top_k": 3,
        "top_p": 0.5,
        "stop": ["x"],
        "repeat_penalty": 1.1,
        "num_ctx": 4096,
        "preset": "ar",
    }
    final = lines((await client.post("/api/chat", json={**QUESTION, "options": options})).text)[-1]
    request = backend.requests[0]
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.seed, sampling.top_k) == (2, 0.5, 7, 3)
    assert (sampling.top_p, sampling.stop, sampling.repetition_penalty) == (0.5, ("x",), 1.1)
    assert (request.decoding.decoder, final["done_reason"]) == ("ar", "length")
    await client.post("/api/chat", json={**QUESTION, "options": {"num_predict": -1}})
    assert backend.requests[1].sampling.max_tokens == 256 - 8


async def test_ollama_generates_through_the_template_raw_and_in_a_gap(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    for fields in ({"system": "s"}, {"raw": True}, {"suffix": "z"}):
        reply = await client.post("/api/generate", json={**MODEL, "prompt": "hi", "stream": False, **fields})
        assert reply.json()["response"] == "Hello, world!"
    chat, raw, gap = ("".join(map(chr, request.prompt)) for request in backend.requests)
    assert (chat, raw, gap) == ("system:s\nuser:hi\n", "hi", "hi")
    assert [request.suffix for request in backend.requests] == [(), (), (122,)]


@pytest.mark.parametrize(
    ("route", "body"), [("/api/chat", {"messages": []}), ("/api/chat", {}), ("/api/generate", {})]
)
async def test_asking_ollama_for_nothing_loads_the_model(
    client: httpx.AsyncClient, backend: FakeBackend, route: str, body: dict[str, object]
) -> None:
    reply = (await client.post(route, json={**MODEL, **body})).json()
    assert (reply["done"], reply["done_reason"]) == (True, "load")
    assert not backend.requests


@pytest.mark.parametrize(
    ("fields", "status", "fragment"),
    [
        ({"model": "llama3"}, 404, "llama3"),
        ({"tools": [{"type": "function"}]}, 400, "tools[0].function"),
        ({"format": "yaml"}, 400, "format"),
        ({"messages": [{"role": "user", "content": "", "images": ["aa"]}]}, 400, "images"),
        ({"options": {"num_predict": 1.5}}, 400, "options.num_predict"),
        ({"options": {"temperature": 9}}, 400, "options.temperature"),
        ({"options": {"repeat_penalty": 0}}, 400, "options.repeat_penalty"),
        ({"options": 3}, 400, "options"),
    ],
)
async def test_ollama_refuses_in_its_own_words(
    client: httpx.AsyncClient, fields: dict[str, object], status: int, fragment: str
) -> None:
    reply = await client.post("/api/chat", json={**QUESTION, **fields})
    assert reply.status_code == status
    assert fragment in reply.json()["error"]


async def test_ollamas_tools_are_called_with_objects(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    tool = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
    call = '<tool_call>\n{"name": "clock", "arguments": {"zone": "é"}}\n</tool_call>'
    backend.words = ("It is", *call, *call)
    backend.model = replace(backend.model, context_length=4096)
    wanted = [{"name": "clock", "arguments": {"zone": "é"}}] * 2
    earlier = [
        *QUESTION["messages"],
        {"role": "assistant", "content": "", "tool_calls": [{"function": wanted[0]}]},
        {"role": "tool", "tool_name": "clock", "content": "noon"},
    ]
    asked = {**MODEL, "messages": earlier, "tools": [tool], "options": {"num_predict": 999}}
    whole = (await client.post("/api/chat", json={**asked, "stream": False})).json()["message"]
    assert whole["content"] == "It is"
    assert [call["function"] for call in whole["tool_calls"]] == wanted
    heard = [line["message"] for line in lines((await client.post("/api/chat", json=asked)).text)]
    assert "".join(message["content"] for message in heard) == "It is"
    assert [call["function"] for message in heard for call in message.get("tool_calls", ())] == wanted
    prompt = "".join(map(chr, backend.requests[0].prompt))
    assert call in prompt
    assert "noon" in prompt


@pytest.mark.parametrize(("format", "kind"), [("json", "json_object"), ({"type": "object"}, "json_schema")])
@pytest.mark.parametrize("route", ["/api/chat", "/api/generate"])
async def test_ollamas_format_is_held_to_by_a_grammar(
    client: httpx.AsyncClient, backend: FakeBackend, route: str, format: object, kind: str
) -> None:
    for more in ({}, {"raw": True}):
        body = {**QUESTION, "prompt": "hi", "format": format, "stream": False, **more}
        assert (await client.post(route, json=body)).status_code == 200
        grammar = backend.requests[-1].grammar
        assert grammar is not None and grammar.kind == kind


async def test_an_ollama_stream_that_fails_says_so(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.failure = KeyError("x")
    reply = await client.post("/api/chat", json=QUESTION)
    assert "internal error" in lines(reply.text)[-1]["error"]


async def test_lm_studio_lists_models(client: httpx.AsyncClient) -> None:
    (row,) = (await client.get("/api/v0/models")).json()["data"]
    assert (row["id"], row["state"], row["max_context_length"]) == ("tiny-diffusion", "loaded", 256)
    assert (await client.get("/api/v0/models/tiny-diffusion")).json() == row
    assert (await client.get("/api/v0/models/x")).json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("body", [{"messages": QUESTION["messages"]}, {"prompt": "hi"}])
async def test_lm_studio_adds_figures_to_openais_reply(
    client: httpx.AsyncClient, body: dict[str, object]
) -> None:
    route = "/api/v0/chat/completions" if "messages" in body else "/api/v0/completions"
    reply = (await client.post(route, json=body)).json()
    plain = (await client.post(route.replace("/api/v0", "/v1"), json=body)).json()
    assert set(reply) - set(plain) == {"stats", "model_info", "runtime"}
    assert reply["stats"]["stop_reason"] == "eosFound"
    assert reply["stats"]["tokens_per_second"] > 0
    chunks = sse((await client.post(route, json={**body, "stream": True})).text)
    assert [chunk["stats"]["stop_reason"] for chunk in chunks if "stats" in chunk] == ["eosFound"]
    assert chunks[-1]["choices"] == []


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
@pytest.mark.parametrize("raw", [False, True])
async def test_ollama_tells_log_probabilities(client: httpx.AsyncClient, path: str, raw: bool) -> None:
    asked = QUESTION if path == "/api/chat" else {**MODEL, "prompt": "hi", "raw": raw}
    body = {**asked, "logprobs": True, "top_logprobs": 2}
    whole = (await client.post(path, json={**body, "stream": False})).json()["logprobs"]
    assert [row["token"] for row in whole] == ["Hello", ", ", "world", "!"]
    assert set(whole[0]) == {"token", "logprob", "bytes", "top_logprobs"}
    assert [row["token"] for row in whole[0]["top_logprobs"]] == ["t0", "t1"]
    streamed = [line.get("logprobs", []) for line in lines((await client.post(path, json=body)).text)]
    assert [row for some in streamed for row in some] == whole
    assert len(streamed) > 2
    assert "logprobs" not in (await client.post(path, json={**asked, "stream": False})).json()
    refused = await client.post(path, json={**asked, "top_logprobs": 2})
    assert (refused.status_code, "top_logprobs" in refused.text) == (400, True)


async def test_llama_cpps_infill_tells_log_probabilities(client: httpx.AsyncClient) -> None:
    body = {"input_prefix": "a", "n_probs": 2}
    reply = (await client.post("/infill", json=body)).json()
    whole = reply["completion_probabilities"]
    assert [(row["id"], row["token"]) for row in whole[:2]] == [(1, "Hello"), (2, ", ")]
    assert [row["id"] for row in whole[0]["top_logprobs"]] == [0, 1]
    chunks = (await client.post("/infill", json={**body, "stream": True})).text.split("\n\n")
    told = [json.loads(one[6:]).get("completion_probabilities", []) for one in chunks if one]
    assert [row for some in told for row in some] == whole
    assert "completion_probabilities" not in (await client.post("/infill", json={"input_prefix": "a"})).json()
