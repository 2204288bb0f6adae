"""A service that answers chats from a script, word by word, and notes when a client goes away."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

WORD_S = 0.02


@dataclass
class ScriptedModel:
    """`script`: an answer a request; the last goes on. A number is an HTTP status, a dict a call."""

    script: list[str | int | dict[str, Any]]
    bodies: list[dict[str, Any]] = field(default_factory=list)
    cancelled_at: list[float] = field(default_factory=list)
    """`time.monotonic()` when a client closed an answer that was not finished."""

    @property
    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Any:
            self.bodies.append(await request.json())
            answer = self.script[min(len(self.bodies), len(self.script)) - 1]
            if isinstance(answer, int):
                return JSONResponse({"error": {"message": "scripted"}}, answer)
            return StreamingResponse(self._stream(answer), media_type="text/event-stream")

        return app

    async def _stream(self, answer: str | dict[str, Any]) -> AsyncIterator[str]:
        try:
            if isinstance(answer, dict):
                function = {"name": answer["name"], "arguments": json.dumps(answer["arguments"])}
                call = {"index": 0, "id": "call_1", "type": "function", "function": function}
                yield _chunk({"role": "assistant", "tool_calls": [call]})
            for word in [] if isinstance(answer, dict) else answer.split():
                await asyncio.sleep(WORD_S)
                yield _chunk({"role": "assistant", "content": f"{word} "})
            yield _chunk({}, "stop") + "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled_at.append(time.monotonic())
            raise


def _chunk(delta: dict[str, Any], finish: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(body)}\n\n"
