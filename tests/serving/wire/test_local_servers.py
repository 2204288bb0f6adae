"""What clients of local servers ask about the server: llama.cpp's, Ollama's; and embeddings, for nobody."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from serving.fake import FakeBackend

pytestmark = pytest.mark.anyio
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "path",
    ["/v1/embeddings", "/embeddings", "/api/embed", "/api/embeddings", "/api/v0/embeddings", "/embedding"],
)
async def test_embeddings_are_refused_with_the_reason(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.post(path, json={"model": "tiny-diffusion", "input": "hi"})
    error = reply.json()["error"]
    assert (reply.status_code, reply.headers["x-should-retry"]) == (501, "false")
    assert "not trained to give vectors" in (error if isinstance(error, str) else error["message"])


async def test_ollamas_clients_see_the_model_in_memory(open_client) -> None:
    async with open_client(aliases={"mine": "tiny-diffusion"}) as client:
        rows = (await client.get("/api/ps")).json()["models"]
    assert [row["name"] for row in rows] == ["tiny-diffusion:latest", "mine:latest"]
    assert rows[0]["expires_at"] == "9999-12-31T00:00:00Z" and rows[0]["size_vram"] == 0


@pytest.mark.parametrize("name", ["tiny-diffusion", "tiny-diffusion:latest", "mercury-2"])
async def test_pulling_a_model_that_is_served_succeeds(client: httpx.AsyncClient, name: str) -> None:
    reply = await client.post("/api/pull", json={"model": name})
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["status"] for line in reply.text.splitlines()][-1] == "success"
    reply = await client.post("/api/pull", json={"name": name, "stream": False})
    assert reply.json() == {"status": "success"}


@pytest.mark.parametrize("body", [{"model": "llama3"}, {}])
async def test_pulling_another_model_is_refused(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    reply = await client.post("/api/pull", json=body)
    assert reply.status_code == 404 and "tiny-diffusion" in reply.json()["error"]


@pytest.mark.parametrize("prompt", ["hi", [104, 105]])
async def test_llama_cpp_completes(client: httpx.AsyncClient, backend: FakeBackend, prompt: Any) -> None:
    body = {
        "prompt": prompt,
        "n_predict": 2,
        "n_probs": 1,
        "repeat_penalty": 1.1,
        "seed": -1,
        "cache_prompt": True,
    }
    reply = (await client.post("/completion", json=body)).json()
    assert (reply["content"], reply["stop"], reply["stop_type"]) == ("Hello, ", True, "limit")
    assert len(reply["completion_probabilities"]) == 2
    request = backend.requests[0]
    assert (request.prompt, request.suffix) == ((104, 105), ())
    assert (request.sampling.max_tokens, request.sampling.repetition_penalty) == (2, 1.1)
    text = (await client.post("/completion", json={**body, "stream": True})).text
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert "".join(chunk["content"] for chunk in chunks) == "Hello, "
    assert [chunk["stop"] for chunk in chunks] == [False, False, True]
    await client.post("/completion", json={"prompt": prompt, "n_predict": -1})
    assert backend.requests[-1].sampling.max_tokens == 254


async def test_llama_cpps_server_tells_of_itself(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    properties = (await client.get("/props")).json()
    assert properties["default_generation_settings"]["n_ctx"] == 256
    assert (properties["total_slots"], properties["model_alias"]) == (1, "tiny-diffusion")
    assert properties["chat_template"] == "{{ messages }}"
    assert (await client.get("/slots")).json() == [{"id": 0, "n_ctx": 256, "is_processing": False}]
    backend.running = 2
    assert [slot["is_processing"] for slot in (await client.get("/slots")).json()] == [True, True, False]


async def test_llama_cpps_template_and_tokens(client: httpx.AsyncClient) -> None:
    messages = [{"role": "developer", "content": "be kind"}, *MESSAGES]
    reply = await client.post("/apply-template", json={"messages": messages})
    assert reply.json() == {"prompt": "system:be kind\nuser:hi\n"}
    reply = await client.post("/tokenize", json={"content": "hi", "with_pieces": True})
    assert reply.json()["tokens"] == [{"id": 104, "piece": "h"}, {"id": 105, "piece": "i"}]


async def test_a_chat_without_a_limit_gets_a_share_of_the_context(open_client, backend: FakeBackend) -> None:
    from dataclasses import replace

    for context_length, limit in ((512, 256), (8192, 1024), (131072, 4096)):
        backend.model = replace(backend.model, context_length=context_length)
        async with open_client() as client:
            await client.post("/v1/chat/completions", json={"messages": MESSAGES})
        assert backend.requests[-1].sampling.max_tokens == limit
    async with open_client(default_max_tokens=77) as client:
        await client.post("/v1/chat/completions", json={"messages": MESSAGES})
    assert backend.requests[-1].sampling.max_tokens == 77
