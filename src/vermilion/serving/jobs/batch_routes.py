"""OpenAI's routes of batches."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi.responses import Response

from vermilion.errors import BadRequest
from vermilion.serving.http import auth
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import Route
from vermilion.serving.jobs import batches
from vermilion.serving.jobs.pagination import page
from vermilion.serving.jobs.quotas import check_open

_MOST_LISTED, _USUAL = 100, 20


async def create(context: RequestContext, body: batches.BatchBody) -> Response:
    background, visit = context.service.offline(), auth.VISIT.get()
    owner = context.service.owner()
    check_open(background.store, "batch", owner, batches.FINAL, context.service.config.organisation_jobs)
    record = await asyncio.to_thread(
        batches.create, background.store, owner, visit.key.id if visit else "", body
    )
    background.batcher.wake()
    return json_response(record.body)


async def listed(context: RequestContext) -> Response:
    rows = [record.body for record in context.service.offline().store.all("batch", context.service.owner())]
    return json_response(page(context.http, rows, _MOST_LISTED, _USUAL))


async def batch(context: RequestContext, id: str) -> Response:
    return json_response(context.service.offline().store.find("batch", id, context.service.owner()).body)


async def cancel(context: RequestContext, id: str) -> Response:
    background = context.service.offline()
    record = background.store.find("batch", id, context.service.owner())
    if record.body["status"] in batches.FINAL:
        raise BadRequest(f"The batch is {record.body['status']} and cannot be cancelled.", "id")
    if record.body["status"] != "cancelling":
        await background.batcher.cancel(record)
    return json_response(record.body)


BATCH: dict[str, Any] = {
    "id": "batch_4f2a",
    "object": "batch",
    "created_at": 1767225600,
    "endpoint": "/v1/chat/completions",
    "errors": None,
    "input_file_id": "file-4f2b",
    "completion_window": "24h",
    "status": "validating",
    "output_file_id": None,
    "error_file_id": None,
    "in_progress_at": None,
    "finalizing_at": None,
    "completed_at": None,
    "failed_at": None,
    "expired_at": None,
    "cancelling_at": None,
    "cancelled_at": None,
    "expires_at": 1767312000,
    "request_counts": {"total": 0, "completed": 0, "failed": 0},
    "metadata": None,
}
CREATE = operation(
    "batches",
    "Have a file of requests answered",
    "Its lines are answered while nobody else asks. Wrong lines are listed in `errors` with their numbers.",
    {"A batch": {"input_file_id": "file-4f2b", "endpoint": "/v1/chat/completions"}},
    BATCH,
)
LIST = operation(
    "batches", "List the batches", "", None, {"object": "list", "data": [BATCH], "has_more": False}
)
RETRIEVE = operation("batches", "One batch", "", None, BATCH)
CANCEL = operation(
    "batches",
    "Cancel a batch",
    "What has been answered by then is in its output file.",
    None,
    {**BATCH, "status": "cancelling"},
)


ROUTES = (
    Route("POST", "/v1/batches", create, CREATE, batches.BatchBody),
    Route("GET", "/v1/batches", listed, LIST),
    Route("GET", "/v1/batches/{id}", batch, RETRIEVE),
    Route("POST", "/v1/batches/{id}/cancel", cancel, CANCEL),
)
