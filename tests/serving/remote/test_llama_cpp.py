"""The service in front of llama.cpp's own server, which runs the embedded model's file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from clients.running import MODEL
from serving.fake import sse
from serving.remote.test_remote_backend import CHAT, fronting
from vermilion.models import catalog

xllamacpp = pytest.importorskip("xllamacpp")
pytestmark = [pytest.mark.anyio, pytest.mark.model, pytest.mark.slow]
NAME = "smollm2"
ASKED = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
LEVEL = {
    "type": "object",
    "properties": {"level": {"type": "integer", "enum": [1, 2, 3]}},
    "required": ["level"],
}


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    """Its address."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(catalog.find(MODEL).base)
    parameters.model_alias = {NAME}
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = int(
        os.environ.get("OMP_NUM_THREADS", "2")
    )
    parameters.n_ctx, parameters.n_parallel = 4096, 2
    parameters.n_gpu_layers = 0
    parameters.use_jinja = True
    parameters.verbosity = -1
    server = xllamacpp.Server(parameters)
    yield server.listening_address
    del server


async def test_llama_cpp_answers_every_protocol_and_says_what_it_used(llama: str) -> None:
    async with fronting(llama) as client:
        (row, *_) = (await client.get("/v1/models")).json()["data"]
        assert (row["id"], row["context_length"]) == (NAME, 2048)
        asked: dict[str, Any] = {"messages": ASKED, "max_tokens": 24}
        whole = (await client.post(CHAT, json=asked)).json()
        answer = whole["choices"][0]["message"]["content"]
        assert "Paris" in answer
        assert whole["usage"]["prompt_tokens"] > 20 and 3 < whole["usage"]["completion_tokens"] <= 24
        reply = await client.post(CHAT, json={**asked, "stream": True})
        told = [one["choices"][0]["delta"].get("content", "") for one in sse(reply.text)]
        assert "".join(told) == answer
        stopped = (await client.post(CHAT, json={**asked, "stop": ["Paris"]})).json()["choices"][0]
        assert "Paris" not in stopped["message"]["content"] and stopped["finish_reason"] == "stop"
        begun = [*ASKED, {"role": "assistant", "content": "The capital of France is the city of"}]
        message = (await client.post("/v1/messages", json={"messages": begun, "max_tokens": 8})).json()
        assert message["content"][0]["text"].lstrip().startswith("Paris")
        conversation = [{"role": "user", "content": [{"text": ASKED[0]["content"]}]}]
        reply = await client.post(
            f"/model/{NAME}/converse",
            json={"messages": conversation, "inferenceConfig": {"maxTokens": 24}},
        )
        assert reply.json()["output"]["message"]["content"] == [{"text": answer}]
        scored = (await client.post(CHAT, json={**asked, "logprobs": True, "top_logprobs": 2})).json()
        rows = scored["choices"][0]["logprobs"]["content"]
        assert "".join(row["token"] for row in rows).startswith(answer)
        assert all(len(row["top_logprobs"]) == 2 for row in rows)


async def test_llama_cpp_keeps_to_a_schema(llama: str) -> None:
    async with fronting(llama) as client:
        asked: dict[str, Any] = {"messages": ASKED, "max_tokens": 64}
        schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": LEVEL}}
        shaped = (await client.post(CHAT, json={**asked, "response_format": schema})).json()
        assert json.loads(shaped["choices"][0]["message"]["content"])["level"] in (1, 2, 3)


async def test_what_llama_cpp_refuses_is_told_in_its_words(llama: str) -> None:
    async with fronting(llama) as client:
        long = [{"role": "user", "content": "word " * 2300}]
        reply = await client.post(CHAT, json={"messages": long})
        assert reply.status_code == 400, reply.text
        assert "context" in reply.json()["error"]["message"]
        gap = await client.post("/v1/completions", json={"prompt": "a(", "suffix": ")"})
        assert (gap.status_code, gap.json()["error"]["param"]) == (501, "suffix")
