"""Batches with OpenAI's client: results, bad lines, errors, cancelling, expiry, restarts, and their place."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from serving import toy
from serving.fake import FakeBackend, served
from vermilion.serving.backend import Served
from vermilion.serving.jobs import batches
from vermilion.serving.jobs.batch_worker import _is_busy
from vermilion.serving.jobs.internal_requests import InternalReply
from vermilion.serving.jobs.job_store import JobStore, Record
from vermilion.serving.serve_config import ServeConfig

pytestmark = pytest.mark.anyio
CHAT, TEXT, FIM = batches.ENDPOINTS
TALK = {"messages": [{"role": "user", "content": "hi"}]}


def serving(backend: FakeBackend, folder: Path) -> AbstractAsyncContextManager[openai.AsyncOpenAI]:
    @asynccontextmanager
    async def load() -> AsyncIterator[Served]:
        yield served(backend)

    return toy.client_of(ServeConfig(port=0, data_folder=folder, drain_timeout_s=1), load)


def line(name: str, body: dict[str, Any], url: str = CHAT, **changes: object) -> str:
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body, **changes})


async def submit(client: openai.AsyncOpenAI, lines: Sequence[str], endpoint: str = CHAT) -> Batch:
    content = io.BytesIO("\n".join(lines).encode())
    file = await client.files.create(file=("batch.jsonl", content), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"mine": "yes"}  # type: ignore[arg-type]
    )  # fmt: skip


async def over(client: openai.AsyncOpenAI, id: str) -> Batch:
    started_s = time.monotonic()
    while (batch := await client.batches.retrieve(id)).status not in batches.FINAL:
        assert time.monotonic() < started_s + 60, batch
        await asyncio.sleep(0.05)
    return batch


async def rows(client: openai.AsyncOpenAI, id: str | None) -> dict[str, dict[str, Any]]:
    text = (await client.files.content(id or "")).text
    read = [json.loads(one) for one in text.splitlines()]
    assert len({row["custom_id"] for row in read}) == len(read)
    return {row["custom_id"]: row for row in read}


@pytest.mark.parametrize(
    ("endpoint", "body"), [(CHAT, TALK), (TEXT, {"prompt": "a"}), (FIM, {"prompt": "a", "suffix": "b"})]
)
async def test_each_endpoint_answers_a_file_and_its_errors_are_kept_apart(
    tmp_path: Path, endpoint: str, body: dict[str, Any]
) -> None:
    backend = FakeBackend()
    async with serving(backend, tmp_path) as client:
        good = [line(f"good-{n}", body, endpoint) for n in range(20)]
        bad = [line("bad", {**body, "model": "other"}, endpoint), line("odd", {**body, "n": -1}, endpoint)]
        batch = await over(client, (await submit(client, [*good, *bad, ""], endpoint)).id)
        assert batch.status == "completed" and batch.metadata == {"mine": "yes"}
        assert batch.request_counts is not None
        assert batch.request_counts.model_dump() == {"total": 22, "completed": 20, "failed": 2}
        answers = await rows(client, batch.output_file_id)
        assert answers.keys() == {f"good-{n}" for n in range(20)}
        response = answers["good-7"]["response"]
        assert response["status_code"] == 200 and response["request_id"].startswith("req-")
        choice = response["body"]["choices"][0]
        assert (choice["message"]["content"] if endpoint == CHAT else choice["text"]) == "Hello, world!"
        errors = await rows(client, batch.error_file_id)
        assert errors["bad"]["response"]["status_code"] == 404
        assert errors["odd"]["response"]["body"]["error"]["param"] == "n"
        assert [b.id for b in (await client.batches.list()).data] == [batch.id]
    assert all(request.background for request in backend.requests)


async def test_every_bad_line_is_named_and_nothing_is_run(tmp_path: Path) -> None:
    backend = FakeBackend()
    wrong = [
        "{",
        line("", TALK),
        line("b", TALK, method="GET"),
        line("c", TALK, url=TEXT),
        line("d", {**TALK, "stream": True}),
        line("a", TALK),
        "[]",
    ]
    async with serving(backend, tmp_path) as client:
        batch = await over(client, (await submit(client, [line("a", TALK), *wrong])).id)
        assert batch.status == "failed" and batch.failed_at and batch.errors and batch.errors.data
        assert [(error.line, error.code, error.param) for error in batch.errors.data] == [
            (2, "invalid_json_line", None),
            (3, "missing_required_parameter", "custom_id"),
            (4, "invalid_method", "method"),
            (5, "mismatched_url", "url"),
            (6, "unsupported_parameter", "body.stream"),
            (7, "duplicate_custom_id", "custom_id"),
            (8, "invalid_json_line", None),
        ]
        with pytest.raises(openai.BadRequestError, match="cannot be cancelled"):
            await client.batches.cancel(batch.id)
        with pytest.raises(openai.NotFoundError):
            await client.batches.create(input_file_id="file-x", endpoint=CHAT, completion_window="24h")
        with pytest.raises(openai.BadRequestError, match="endpoint"):
            await client.batches.create(
                input_file_id=batch.input_file_id, endpoint="/v1/embeddings", completion_window="24h"
            )
    assert backend.requests == []


async def test_a_cancelled_batch_keeps_what_was_answered(tmp_path: Path) -> None:
    backend = FakeBackend(step_s=0.05)
    async with serving(backend, tmp_path) as client:
        first = await submit(client, [line(f"{n}", TALK) for n in range(400)])
        second = await submit(client, [line("later", TALK)])
        while not (await client.batches.retrieve(first.id)).request_counts.completed:  # type: ignore[union-attr]
            await asyncio.sleep(0.05)
        assert (await client.batches.cancel(second.id)).status == "cancelled"
        await client.batches.cancel(first.id)
        batch = await over(client, first.id)
        assert batch.status == "cancelled" and batch.cancelling_at and batch.cancelled_at
        answers = await rows(client, batch.output_file_id)
        assert batch.request_counts and 0 < len(answers) == batch.request_counts.completed < 400
        while backend.running:
            await asyncio.sleep(0.01)


async def test_what_is_left_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "WINDOW_S", 2)
    async with serving(FakeBackend(step_s=0.1), tmp_path) as client:
        batch = await over(client, (await submit(client, [line(f"{n}", TALK) for n in range(300)])).id)
        assert batch.status == "expired" and batch.expired_at
        answers, errors = await rows(client, batch.output_file_id), await rows(client, batch.error_file_id)
        assert len(answers) + len(errors) == 300 and answers and errors
        assert {row["error"]["code"] for row in errors.values()} == {"batch_expired"}


async def test_a_restart_asks_only_what_was_not_answered(tmp_path: Path) -> None:
    backend = FakeBackend(step_s=0.05)
    async with serving(backend, tmp_path) as client:
        batch = await submit(client, [line(f"{n}", TALK) for n in range(60)])
        while not (await client.batches.retrieve(batch.id)).request_counts.completed:  # type: ignore[union-attr]
            await asyncio.sleep(0.05)
    record = tmp_path / "batch" / batch.id
    before = (record / "output.jsonl").read_text()
    num_before = before.count("\n")
    assert 0 < num_before < 60
    # As if the service had been killed in the middle of a line.
    (record / "output.jsonl").write_text(before + '{"id": "cut')
    again = FakeBackend()
    async with serving(again, tmp_path) as client:
        done = await over(client, batch.id)
        assert done.status == "completed"
        assert (await rows(client, done.output_file_id)).keys() == {f"{n}" for n in range(60)}
    assert len(again.requests) == 60 - num_before


async def test_a_broken_line_fails_alone(tmp_path: Path) -> None:
    broken = {
        "deep": line("deep", {**TALK, "x": 1}).replace('"x": 1', '"x": ' + "[" * 100_000 + "]" * 100_000),
        "digits": line("digits", {**TALK, "seed": 1}).replace('"seed": 1', '"seed": ' + "9" * 5000),
        "half": line("half", {"messages": [{"role": "user", "content": "\ud800"}]}),
        None: line("\ud800", TALK),
    }
    async with serving(FakeBackend(), tmp_path) as client:
        lines = [line("first", TALK), *broken.values(), line("last", TALK)]
        batch = await over(client, (await submit(client, lines)).id)
        assert batch.status == "completed" and batch.request_counts is not None
        assert batch.request_counts.model_dump() == {"total": 6, "completed": 2, "failed": 4}
        assert (await rows(client, batch.output_file_id)).keys() == {"first", "last"}
        errors = await rows(client, batch.error_file_id)
        assert errors.keys() == broken.keys()
        told = {name: (row["error"] or {}).get("message", "") for name, row in errors.items()}
        assert "deeply" in told["deep"] and "digits" in told["digits"] and "surrogate" in told[None]
        assert errors[None]["error"]["line"] == 5
        assert errors["half"]["response"]["status_code"] == 400


async def test_a_full_disk_ends_the_batch_with_an_error_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = batches.note

    def full(store: JobStore, record: Record, name: str, outcome: batches.Outcome) -> None:
        if name == "5":
            raise OSError(errno.ENOSPC, "No space left on device")
        note(store, record, name, outcome)

    monkeypatch.setattr(batches, "note", full)
    async with serving(FakeBackend(), tmp_path) as client:
        first = await submit(client, [line(f"{n}", TALK) for n in range(10)])
        second = await submit(client, [line("a", TALK)])
        batch = await over(client, first.id)
        assert batch.status == "failed" and batch.errors and batch.errors.data
        assert batch.errors.data[0].code == "storage_error"
        assert (await over(client, second.id)).status == "completed"


async def test_a_disk_that_takes_nothing_at_all_ends_the_batch_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(FakeBackend(step_s=0.05), tmp_path) as client:
        batch = await submit(client, [line(f"{n}", TALK) for n in range(40)])

        def full(*given: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(batches, "note", full)
        monkeypatch.setattr(JobStore, "save", full)
        assert (await over(client, batch.id)).status == "failed"


@pytest.mark.parametrize(
    ("status", "headers", "code", "busy"),
    [
        (429, {"retry-after": "3"}, "rate_limit_exceeded", True),
        (429, {}, "rate_limit_exceeded", False),
        (503, {}, "model_loading", True),
        (409, {"retry-after": "1"}, "idempotency_key_in_use", True),
        (409, {}, "idempotency_key_reused", False),
        (400, {}, "invalid_value", False),
        (200, {}, None, False),
    ],
)
def test_only_what_may_yet_succeed_is_asked_again(
    status: int, headers: dict[str, str], code: str | None, busy: bool
) -> None:
    assert _is_busy(InternalReply(status, headers, {"error": {"code": code}})) is busy


async def test_a_busy_service_is_asked_again(tmp_path: Path) -> None:
    backend = FakeBackend(capacity=3)
    async with serving(backend, tmp_path) as client:
        batch = await over(client, (await submit(client, [line(f"{n}", TALK) for n in range(12)])).id)
        assert batch.request_counts is not None and batch.request_counts.completed == 12
