"""Every face of the service in front of the embedded model: the same question, the same answer."""

from __future__ import annotations

import httpx
import pytest

from vermilion.serving.http.app import create_app
from vermilion.serving.local_models import open_model
from vermilion.serving.service_state import ServiceState
from vermilion.serving.settings import Settings

pytestmark = [pytest.mark.anyio, pytest.mark.model, pytest.mark.slow]
MESSAGES = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
GAP = ("def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n")


async def test_every_face_answers_alike() -> None:
    settings = Settings()
    opened = open_model(settings, settings.model)
    served = opened.served
    try:
        transport = httpx.ASGITransport(create_app(ServiceState(settings.serve, served)))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:

            async def ask(path: str, **fields: object) -> dict:
                reply = await client.post(path, json={"model": served.backend.model.id, **fields})
                assert reply.status_code == 200, reply.text
                return reply.json()

            talk = {"messages": MESSAGES}
            openai = await ask("/v1/chat/completions", **talk, max_tokens=24)
            studio = await ask("/api/v0/chat/completions", **talk, max_tokens=24)
            ollama = await ask("/api/chat", **talk, stream=False, options={"num_predict": 24})
            claude = await ask("/v1/messages", **talk, max_tokens=24)
            answer = openai["choices"][0]["message"]["content"]
            assert "Paris" in answer
            assert studio["choices"][0]["message"]["content"] == answer
            assert ollama["message"]["content"] == answer
            assert claude["content"][0]["text"] == answer

            fim = {"stop": ["\n"], "presence_penalty": 0, "max_tokens": 12}
            mercury = await ask("/v1/fim/completions", prompt=GAP[0], suffix=GAP[1], **fim)
            infill = await ask("/infill", input_prefix=GAP[0], input_suffix=GAP[1], n_predict=12, stop=["\n"])
            filled = mercury["choices"][0]["text"]
            assert filled.strip() and infill["content"] == filled
    finally:
        opened.close()
