"""Answers batches, oldest first, some lines of one at a time, behind everybody else's requests."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Iterator

from starlette.types import ASGIApp

from vermilion.accounts import organisations
from vermilion.accounts.gate import Accounts, Visit
from vermilion.serving.jobs import batches, file_contents
from vermilion.serving.jobs.batches import Line
from vermilion.serving.jobs.internal_requests import InternalReply, post
from vermilion.serving.jobs.job_store import JobStore, Record

_ABREAST = 8
"""Lines asked at once."""
_BUSY = (429, 503)
_AGAIN_S = 1.0

_log = logging.getLogger(__name__)


class BatchWorker:
    """The queue. `run` serves it until it is cancelled; the others are called between its steps."""

    def __init__(self, store: JobStore, app: ASGIApp, accounts: Accounts | None) -> None:
        self._store = store
        self._app = app
        self._accounts = accounts
        self._wake = asyncio.Event()
        self._current: tuple[Record, asyncio.Task[None]] | None = None

    def wake(self) -> None:
        self._wake.set()

    def cancel(self, record: Record) -> None:
        """Lines that are being answered are given up; what has been answered stays."""
        batches.mark(self._store, record, "cancelling")
        if self._current is not None and self._current[0] is record:
            self._current[1].cancel()
        else:
            self._finish(record, "cancelled")

    async def run(self) -> None:
        while True:
            open_ones = (r for r in self._store.all("batch") if r.body["status"] not in batches.FINAL)
            record = next(open_ones, None)
            if record is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            if record.body["status"] == "cancelling":
                self._finish(record, "cancelled")
                continue
            task = asyncio.create_task(self._answer(record))
            self._current = record, task
            try:
                await asyncio.wait((task,))
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                self._current = None
            if record.body["status"] == "cancelling":
                self._finish(record, "cancelled")
            elif not task.cancelled() and (error := task.exception()) is not None:
                # The edge of one batch: the queue goes on.
                _log.error("batch %s failed", record.id, exc_info=error)
                batches.mark(self._store, record, "failed")

    async def _answer(self, record: Record) -> None:
        path = self._store.path(record) / "input.jsonl"
        lines, wrong = await asyncio.to_thread(batches.read, path, record.body["endpoint"])
        if wrong:
            record.body["errors"] = {"object": "list", "data": wrong}
            batches.mark(self._store, record, "failed")
            return
        before = dict(batches.answered(self._store, record))
        well = sum(before.values())
        record.body["request_counts"] = {
            "total": len(lines), "completed": well, "failed": len(before) - well
        }  # fmt: skip
        if record.body["status"] == "validating":
            batches.mark(self._store, record, "in_progress")
        left = iter([line for line in lines if line.custom_id not in before])
        try:
            async with asyncio.timeout(max(0.0, record.body["expires_at"] - time.time())):
                async with asyncio.TaskGroup() as group:
                    for _ in range(_ABREAST):
                        group.create_task(self._work(record, left))
        except TimeoutError:
            done = dict(batches.answered(self._store, record))
            for line in lines:
                if line.custom_id not in done:
                    batches.note(self._store, record, line, None)
            self._finish(record, "expired")
            return
        batches.mark(self._store, record, "finalizing")
        self._finish(record, "completed")

    async def _work(self, record: Record, left: Iterator[Line]) -> None:
        for line in left:
            reply = await self._ask(record, line)
            batches.note(self._store, record, line, reply)

    async def _ask(self, record: Record, line: Line) -> InternalReply:
        """The answer; asked again while the service is too busy for it."""
        while True:
            visit = await self._visit(record, line)
            reply = await post(self._app, record.body["endpoint"], line.body, visit)
            if reply.status not in _BUSY:
                return reply
            await asyncio.sleep(float(reply.headers.get("retry-after", _AGAIN_S)))

    async def _visit(self, record: Record, line: Line) -> Visit | None:
        """For whose account it is; whether the key is still good is found out when the request begins."""
        if self._accounts is None:
            return None
        key = await self._accounts.call(organisations.find_key, record.own["key_id"])
        if key is None:
            raise RuntimeError(f"the key of {record.id} is gone")
        visit = Visit(self._accounts, key, f"{record.id}-{secrets.token_hex(6)}", "/v1/batches")
        # Asked again after a crash, a line is neither computed nor charged twice.
        visit.idempotency_key = f"{record.id}-{hashlib.sha256(line.custom_id.encode()).hexdigest()[:24]}"
        return visit

    def _finish(self, record: Record, status: str) -> None:
        """Make files of what was answered, and close the batch."""
        for name, field in (("output", "output_file_id"), ("errors", "error_file_id")):
            path = self._store.path(record) / f"{name}.jsonl"
            if path.exists():
                with path.open("rb") as source:
                    file = file_contents.keep(
                        self._store, record.owner, "batch_output", f"{record.id}_{name}.jsonl", source
                    )
                record.body[field] = file.id
        batches.mark(self._store, record, status)
