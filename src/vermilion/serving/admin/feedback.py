"""What users made of an answer, kept beside the figures of the request it speaks of. Never its words."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any, Literal

from fastapi.responses import Response
from pydantic import BaseModel, Field

from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import OPEN, Route
from vermilion.serving.jobs.background import BackgroundJobs
from vermilion.serving.wire.openai_bodies import WIRE

FILE = "feedback.jsonl"


class FeedbackBody(BaseModel):
    """Body of POST /v1/feedback, in Mercury's shape."""

    model_config = WIRE

    request_id: str = Field(min_length=1, max_length=200, description="The `id` of the answer.")
    user_action: Literal["accept", "reject", "ignore"] = Field(description="What became of it.")
    provider_name: str | None = Field(None, max_length=200, description="The editor.")
    provider_version: str | None = Field(None, max_length=200, description="Its version.")


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=True) + "\n")


async def feedback(context: RequestContext, body: FeedbackBody) -> Response:
    row = {
        **body.model_dump(),
        "given_at": int(time.time()),
        "request": context.service.answer_log.find(body.request_id),
    }
    context.service.metrics.feedback.labels(body.user_action).inc()
    stored = isinstance(context.service.background, BackgroundJobs)
    if isinstance(context.service.background, BackgroundJobs):
        await asyncio.to_thread(_append, context.service.background.store.folder / FILE, row)
    return json_response({"object": "feedback", "request_id": body.request_id, "stored": stored})


FEEDBACK = operation(
    "generation",
    "Say what became of an answer",
    "Needs no key: the id is one. Kept in `feedback.jsonl` of the data folder, with the request's figures.",
    {"Taken": {"request_id": "cmpl-5e1d", "user_action": "accept"}},
    {"object": "feedback", "request_id": "cmpl-5e1d", "stored": True},
)


ROUTES = (Route("POST", "/v1/feedback", feedback, FEEDBACK, FeedbackBody, OPEN, needs_model=False),)
