"""Batches of requests: what a client asks for, what is wrong with a file, what has been answered so far."""

from __future__ import annotations

import codecs
import json
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
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
_LONGEST_LINE = 8 * 1024 * 1024
_CUSTOM_ID = re.compile(rb'"custom_id"\s{0,8}:\s{0,8}"([\x20\x21\x23-\x5b\x5d-\x7e]{1,200})"')


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
    content: bytes
    """Its body as JSON."""


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """A line that cannot be asked, whatever it means; the others can."""

    number: int
    custom_id: str | None
    message: str

    @property
    def name(self) -> str:
        """What tells it from other lines: no custom_id has a null character in front."""
        return self.custom_id or f"\0{self.number}"


@dataclass(slots=True)
class ReadBatch:
    """What a file holds."""

    lines: list[Line] = field(default_factory=list)
    broken: list[BrokenLine] = field(default_factory=list)
    wrong: list[dict[str, Any]] = field(default_factory=list)
    """What makes the whole file wrong, in OpenAI's shape."""


Outcome = InternalReply | BrokenLine | None
"""Of a line: its answer, what is wrong with it, None for an answer that came too late."""


class _Unreadable(Exception):
    """A line is broken: (custom_id or None, why)."""


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


def read(path: Path, endpoint: str) -> ReadBatch:
    """The requests of a file, and what is wrong with it."""
    read, known = ReadBatch(), set[str]()
    with path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                line = _line(text, endpoint)
                if line.custom_id in known:
                    raise ValueError(
                        "duplicate_custom_id", f"custom_id {line.custom_id!r} was used before", "custom_id"
                    )
            except _Unreadable as error:
                read.broken.append(BrokenLine(number, *error.args))
            except ValueError as error:
                code, message, param = error.args
                read.wrong.append({"code": code, "line": number, "message": message, "param": param})
            else:
                known.add(line.custom_id)
                read.lines.append(line)
    num_lines = len(read.lines) + len(read.broken)
    if not num_lines and not read.wrong:
        read.wrong.append(
            {"code": "empty_file", "line": None, "message": "The file has no line.", "param": None}
        )
    if num_lines > MOST_LINES:
        message = f"The file has {num_lines} lines, at most {MOST_LINES} are allowed."
        read.wrong.append({"code": "too_many_lines", "line": None, "message": message, "param": None})
    del read.wrong[_MOST_REPORTED:]
    return read


def _line(text: bytes, endpoint: str) -> Line:
    """Raises ValueError(code, message, param) for what makes a whole file wrong, else _Unreadable."""
    if len(text) > _LONGEST_LINE:
        raise _Unreadable(_custom_id(text), f"The line is longer than {_LONGEST_LINE} bytes.")
    try:
        row = json.loads(text.decode("utf-8"))
    except json.JSONDecodeError:
        raise ValueError("invalid_json_line", "This line is not parseable as valid JSON.", None) from None
    except UnicodeDecodeError:
        raise _Unreadable(_custom_id(text), "The line is not UTF-8.") from None
    except RecursionError:
        raise _Unreadable(_custom_id(text), "The line is nested too deeply.") from None
    except ValueError:
        raise _Unreadable(_custom_id(text), "The line has a number of too many digits.") from None
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
    try:
        name.encode()
        return Line(name, json.dumps(body).encode())
    except UnicodeEncodeError:
        raise _Unreadable(None, "custom_id holds half of a surrogate pair.") from None
    except RecursionError:
        raise _Unreadable(name, "The line is nested too deeply.") from None


def _custom_id(text: bytes) -> str | None:
    """Of a line that cannot be parsed, as far as that can be told."""
    found = _CUSTOM_ID.search(text, 0, _LONGEST_LINE)
    return found[1].decode() if found else None


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
            for line in whole.splitlines():
                row = json.loads(line)
                yield row["custom_id"] or f"\0{row['error']['line']}", well


def note(store: JobStore, record: Record, name: str, outcome: Outcome) -> None:
    """Write down what became of the line of that name. Raises OSError where it cannot be written."""
    well = isinstance(outcome, InternalReply) and outcome.status in _OK
    row: dict[str, Any] = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": name, "response": None}
    if outcome is None:
        message = "This request could not be executed before the completion window expired."
        row["error"] = {"code": "batch_expired", "message": message}
    elif isinstance(outcome, BrokenLine):
        row["custom_id"] = outcome.custom_id
        row["error"] = {"code": "invalid_line", "message": outcome.message, "line": outcome.number}
    else:
        request_id = outcome.headers.get("x-request-id", "")
        row["response"] = {"status_code": outcome.status, "request_id": request_id, "body": outcome.body}
        row["error"] = None
    # What is no Unicode, such as half of a surrogate pair, shows as a question mark.
    content = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    with (store.path(record) / f"{'output' if well else 'errors'}.jsonl").open("ab") as file:
        file.write(content)
    record.body["request_counts"]["completed" if well else "failed"] += 1
