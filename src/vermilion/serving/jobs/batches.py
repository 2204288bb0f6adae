"""Batches of requests: what a client asks for, what is wrong with a file, what has been answered so far."""

from __future__ import annotations

import codecs
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from vermilion.errors import BadParameter
from vermilion.serving.jobs.file_contents import content_of
from vermilion.serving.jobs.internal_requests import InternalReply
from vermilion.serving.jobs.job_store import JobStore, NotHere, Record, link
from vermilion.serving.wire.openai_bodies import WIRE

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/fim/completions")
FINAL = ("completed", "failed", "cancelled", "expired")
WINDOW_S = 24 * 3600
MOST_LINES = 50_000
_MOST_REPORTED = 100
_OK = range(200, 300)


class BatchBody(BaseModel):
    """Body of POST /v1/batches."""

    model_config = WIRE

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/fim/completions"]
    completion_window: Literal["24h"] = Field("24h", description="After it what is left expires.")
    metadata: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch."""

    custom_id: str
    body: Mapping[str, Any]


def create(store: JobStore, owner: str, key_id: str, body: BatchBody) -> Record:
    """A batch with its own copy of the file. `key_id`: the key it is answered for, where there are accounts.

    Raises BadParameter, and NotHere for a file that is not there.
    """
    try:
        file = store.find("file", body.input_file_id, owner)
    except NotHere as error:
        error.param = "input_file_id"
        raise
    if file.body["purpose"] != "batch":
        raise BadParameter("input_file_id", file.id, "a file of purpose batch")
    record = store.new("batch", owner)
    link(content_of(store, file), store.path(record) / "input.jsonl")
    moments = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    record.body |= {
        "object": "batch",
        "endpoint": body.endpoint,
        "errors": None,
        "input_file_id": file.id,
        "completion_window": body.completion_window,
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        **{f"{moment}_at": None for moment in moments},
        "expires_at": record.body["created_at"] + WINDOW_S,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": body.metadata,
    }
    record.own = {"key_id": key_id, "number": len(store.all("batch"))}
    store.save(record)
    return record


def mark(store: JobStore, record: Record, status: str) -> None:
    """The batch is now `status`, since now."""
    record.body["status"] = status
    record.body[f"{status}_at"] = int(time.time())
    store.save(record)


def read(path: Path, endpoint: str) -> tuple[list[Line], list[dict[str, Any]]]:
    """The requests of a file, and in OpenAI's shape what is wrong with its lines."""
    lines: list[Line] = []
    wrong: list[dict[str, Any]] = []
    known: set[str] = set()
    for number, text in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = _line(text, endpoint)
            if line.custom_id in known:
                raise ValueError(
                    "duplicate_custom_id", f"custom_id {line.custom_id!r} was used before", "custom_id"
                )
        except ValueError as error:
            code, message, param = (
                error.args if len(error.args) == 3 else ("invalid_json_line", str(error), None)
            )
            wrong.append({"code": code, "line": number, "message": message, "param": param})
            continue
        known.add(line.custom_id)
        lines.append(line)
    if not lines and not wrong:
        wrong.append({"code": "empty_file", "line": None, "message": "The file has no line.", "param": None})
    if len(lines) > MOST_LINES:
        message = f"The file has {len(lines)} lines, at most {MOST_LINES} are allowed."
        wrong.append({"code": "too_many_lines", "line": None, "message": message, "param": None})
    return lines, wrong[:_MOST_REPORTED]


def _line(text: bytes, endpoint: str) -> Line:
    """Raises ValueError(code, message, param)."""
    try:
        row = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("invalid_json_line", "This line is not parseable as valid JSON.", None) from None
    if not isinstance(row, dict):
        raise ValueError("invalid_json_line", "This line is not a JSON object.", None)
    name, body = row.get("custom_id"), row.get("body")
    if not isinstance(name, str) or not name:
        raise ValueError(
            "missing_required_parameter", "custom_id must be text that is not empty.", "custom_id"
        )
    if row.get("method") != "POST":
        raise ValueError("invalid_method", f"method is {row.get('method')!r}, it must be 'POST'.", "method")
    if row.get("url") != endpoint:
        raise ValueError("mismatched_url", f"url is {row.get('url')!r}, the batch's is {endpoint!r}.", "url")
    if not isinstance(body, dict):
        raise ValueError("missing_required_parameter", "body must be a JSON object.", "body")
    if body.get("stream") or body.get("diffusing"):
        raise ValueError("unsupported_parameter", "A batch cannot stream its answers.", "body.stream")
    return Line(name, body)


def answered(store: JobStore, record: Record) -> Iterator[tuple[str, bool]]:
    """(custom_id, whether it went well) of the lines that have an answer already."""
    for name, well in (("output", True), ("errors", False)):
        path = store.path(record) / f"{name}.jsonl"
        if path.exists():
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                # The service was killed in the middle of this line; the request is made again.
                path.write_bytes(whole)
            yield from ((json.loads(line)["custom_id"], well) for line in whole.splitlines())


def note(store: JobStore, record: Record, line: Line, reply: InternalReply | None) -> None:
    """Write down the answer to a line; None for one that came too late."""
    well = reply is not None and reply.status in _OK
    row: dict[str, Any] = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": line.custom_id}
    if reply is None:
        message = "This request could not be executed before the completion window expired."
        row |= {"response": None, "error": {"code": "batch_expired", "message": message}}
    else:
        request_id = reply.headers.get("x-request-id", "")
        response = {"status_code": reply.status, "request_id": request_id, "body": reply.body}
        row |= {"response": response, "error": None}
    with (store.path(record) / f"{'output' if well else 'errors'}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    record.body["request_counts"]["completed" if well else "failed"] += 1
