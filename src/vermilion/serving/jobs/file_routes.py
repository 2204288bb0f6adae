"""OpenAI's files: uploads for fine-tuning and batches, and what these make."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi.responses import FileResponse, Response
from starlette.datastructures import FormData, UploadFile

from vermilion.errors import BadParameter, BadRequest
from vermilion.serving.http.form_bodies import read_form
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import JOBS, Route
from vermilion.serving.jobs.file_contents import check_examples, content_of, keep, swept
from vermilion.serving.jobs.job_store import JobStore, Record
from vermilion.serving.jobs.pagination import page
from vermilion.serving.jobs.quotas import check_stored

PURPOSES = ("fine-tune", "batch")
_MOST_LISTED = 10_000
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_LIFETIMES_S = (3600, 2_592_000)


class StorageFull(BadRequest):
    status = 413

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"All files together may hold {limit_bytes} bytes; delete some.", "file", "storage_full"
        )


def _expiry(form: FormData) -> int | None:
    seconds = form.get(_SECONDS)
    if seconds is None:
        return None
    if form.get(_ANCHOR) != "created_at":
        raise BadParameter("expires_after.anchor", form.get(_ANCHOR), "created_at")
    text, (least, most) = str(seconds), _LIFETIMES_S
    if not (text.isascii() and text.isdecimal() and least <= int(text[:9]) <= most):
        raise BadParameter("expires_after.seconds", seconds, f"{least} to {most}")
    return int(time.time()) + int(text)


async def _upload(context: RequestContext) -> Record:
    offline, config, owner = context.service.offline(), context.service.config, context.service.owner()
    form = await read_form(context.http, config.max_file_bytes)
    try:
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile):
            raise BadRequest("file: send a file in a multipart form.", "file", "missing_required_parameter")
        if purpose not in PURPOSES:
            raise BadParameter("purpose", purpose, " or ".join(PURPOSES))
        expires_at, name = _expiry(form), (file.filename or "upload.jsonl")[:255]
        stored = sum(record.body["bytes"] for record in offline.store.all("file"))
        if stored + (file.size or 0) > config.max_stored_bytes:
            raise StorageFull(config.max_stored_bytes)
        check_stored(offline.store, owner, file.size or 0, config.organisation_stored_bytes)
        if not file.size:
            raise BadRequest("file: it is empty.", "file", "invalid_file_format")
        if purpose == "fine-tune":
            await asyncio.to_thread(check_examples, name, await file.read())
            await file.seek(0)
        record = await asyncio.to_thread(
            keep, offline.store, context.service.owner(), str(purpose), name, file.file
        )
    finally:
        await form.close()
    record.body["expires_at"] = expires_at
    offline.store.save(record)
    return record


def _found(context: RequestContext, id: str) -> tuple[JobStore, Record]:
    store = swept(context.service.offline().store)
    return store, store.find("file", id, context.service.owner())


async def upload(context: RequestContext) -> Response:
    return json_response((await _upload(context)).body)


async def files(context: RequestContext) -> Response:
    purpose = context.http.query_params.get("purpose")
    records = swept(context.service.offline().store).all("file", context.service.owner())
    rows = [record.body for record in records if purpose in (None, "", record.body["purpose"])]
    return json_response(page(context.http, rows, _MOST_LISTED, _MOST_LISTED))


async def file(context: RequestContext, id: str) -> Response:
    return json_response(_found(context, id)[1].body)


async def content(context: RequestContext, id: str) -> Response:
    store, record = _found(context, id)
    return FileResponse(
        content_of(store, record),
        media_type="application/octet-stream",
        filename=record.body["filename"],
    )


async def delete(context: RequestContext, id: str) -> Response:
    store, record = _found(context, id)
    store.remove(record)
    return json_response({"id": id, "object": "file", "deleted": True})


FILE: dict[str, Any] = {
    "id": "file-4f2a",
    "object": "file",
    "bytes": 18_204,
    "created_at": 1767225600,
    "filename": "answers.jsonl",
    "purpose": "fine-tune",
    "status": "processed",
    "expires_at": None,
    "status_details": None,
}
UPLOAD = operation(
    "files",
    "Upload a file",
    "A multipart form with `file` and `purpose`: `fine-tune` or `batch`. Examples are checked at once, and "
    "every line that is none is refused with its number.",
    None,
    FILE,
)
LIST = operation("files", "List the files", "", None, {"object": "list", "data": [FILE], "has_more": False})
RETRIEVE = operation("files", "One file", "", None, FILE)
CONTENT = operation("files", "The content of a file", "", None, {})
DELETE = operation(
    "files",
    "Delete a file",
    "Jobs and batches that were made from it keep what they need.",
    None,
    {"id": "file-4f2a", "object": "file", "deleted": True},
)


ROUTES = (
    Route("POST", "/v1/files", upload, UPLOAD, scopes=JOBS),
    Route("GET", "/v1/files", files, LIST, scopes=JOBS),
    Route("GET", "/v1/files/{id}", file, RETRIEVE, scopes=JOBS),
    Route("GET", "/v1/files/{id}/content", content, CONTENT, scopes=JOBS),
    Route("DELETE", "/v1/files/{id}", delete, DELETE, scopes=JOBS),
)
