"""Answers batches behind everybody else's requests: organisations side by side, each one's in turn."""

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
"""Lines asked at once, of all organisations together; they take turns."""
_UNAVAILABLE = 503
_TOO_MANY = 429
_IN_USE = "idempotency_key_in_use"
"""The line was asked by an earlier service, whose lease on it has not run out."""
_AGAIN_S = 1.0

_log = logging.getLogger(__name__)


class BatchWorker:
    """The queue. `run` serves it until it is cancelled; the others are called between its steps."""

    def __init__(self, store: JobStore, app: ASGIApp, accounts: Accounts | None) -> None:
        self._store = store
        self._app = app
        self._accounts = accounts
        self._wake = asyncio.Event()
        self._places = asyncio.Semaphore(_ABREAST)
        self._turns: dict[str, asyncio.Task[None]] = {}
        """By organisation."""
        self._answering: dict[str, asyncio.Task[None]] = {}
        """By batch."""
        self._writing: dict[str, asyncio.Lock] = {}

    def wake(self) -> None:
        self._wake.set()

    async def cancel(self, record: Record) -> None:
        """Lines that are being answered are given up; what has been answered stays."""
        if record.id in self._answering:
            await asyncio.to_thread(batches.mark, self._store, record, "cancelling")
            if record.id in self._answering:
                self._answering[record.id].cancel()
            return
        # Final before anything is awaited: its organisation's turn must not take it up meanwhile.
        batches.mark(self._store, record, "cancelling")
        record.body["status"] = "cancelled"
        await self._finish(record, "cancelled")

    async def run(self) -> None:
        try:
            while True:
                self._wake.clear()
                for record in self._store.all("batch"):
                    if record.body["status"] not in batches.FINAL and record.owner not in self._turns:
                        self._turns[record.owner] = asyncio.create_task(self._serve(record.owner))
                await self._wake.wait()
        finally:
            turns = list(self._turns.values())
            for turn in turns:
                turn.cancel()
            await asyncio.gather(*turns, return_exceptions=True)

    async def _serve(self, owner: str) -> None:
        """The batches of one organisation, oldest first, as long as there are any."""
        try:
            while True:
                mine = self._store.all("batch", owner)
                record = next((one for one in mine if one.body["status"] not in batches.FINAL), None)
                if record is None:
                    return
                await self._run_one(record)
        finally:
            del self._turns[owner]

    async def _run_one(self, record: Record) -> None:
        """To its end, whatever that is."""
        error: BaseException | None = None
        if record.body["status"] != "cancelling":
            task = self._answering[record.id] = asyncio.create_task(self._answer(record))
            self._writing[record.id] = asyncio.Lock()
            try:
                await asyncio.wait((task,))
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                del self._answering[record.id], self._writing[record.id]
            error = None if task.cancelled() else task.exception()
        try:
            if error is not None:
                await self._fail(record, error)
            elif record.body["status"] == "cancelling":
                await self._finish(record, "cancelled")
        except OSError:
            # Nothing can be written, not even this. After a restart the batch goes on where it stopped.
            _log.exception("the end of batch %s cannot be written", record.id)
            record.body |= {"status": "failed", "failed_at": int(time.time())}

    async def _answer(self, record: Record) -> None:
        path = self._store.path(record) / "input.jsonl"
        read = await asyncio.to_thread(batches.read, path, record.body["endpoint"])
        if read.wrong:
            record.body["errors"] = {"object": "list", "data": read.wrong}
            await asyncio.to_thread(batches.mark, self._store, record, "failed")
            return
        before = await asyncio.to_thread(lambda: dict(batches.answered(self._store, record)))
        well = sum(before.values())
        record.body["request_counts"] = {
            "total": len(read.lines) + len(read.broken), "completed": well, "failed": len(before) - well
        }  # fmt: skip
        if record.body["status"] == "validating":
            await asyncio.to_thread(batches.mark, self._store, record, "in_progress")
        for broken in read.broken:
            if broken.name not in before:
                await self._note(record, broken.name, broken)
        left = iter([line for line in read.lines if line.custom_id not in before])
        try:
            async with asyncio.timeout(max(0.0, record.body["expires_at"] - time.time())):
                async with asyncio.TaskGroup() as group:
                    for _ in range(_ABREAST):
                        group.create_task(self._work(record, left))
        except TimeoutError:
            done = await asyncio.to_thread(lambda: dict(batches.answered(self._store, record)))
            for line in read.lines:
                if line.custom_id not in done:
                    await self._note(record, line.custom_id, None)
            await self._finish(record, "expired")
            return
        await asyncio.to_thread(batches.mark, self._store, record, "finalizing")
        await self._finish(record, "completed")

    async def _work(self, record: Record, left: Iterator[Line]) -> None:
        for line in left:
            reply = await self._ask(record, line)
            await self._note(record, line.custom_id, reply)

    async def _note(self, record: Record, name: str, what: batches.Outcome) -> None:
        # One at a time: two rows written at once would be mixed.
        async with self._writing[record.id]:
            writing = asyncio.create_task(asyncio.to_thread(batches.note, self._store, record, name, what))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                # The row is on its way; the batch ends only behind it.
                await writing
                raise

    async def _ask(self, record: Record, line: Line) -> InternalReply:
        """The answer; asked again while the service is too busy for it. The wait takes nobody's place."""
        while True:
            async with self._places:
                visit = await self._visit(record, line)
                reply = await post(self._app, record.body["endpoint"], line.content, visit)
            if not _is_busy(reply):
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

    async def _fail(self, record: Record, error: BaseException) -> None:
        """The edge of one batch: what was answered is kept, and the others go on."""
        _log.error("batch %s failed", record.id, exc_info=error)
        faults = error.subgroup(OSError) if isinstance(error, BaseExceptionGroup) else None
        on_disk = faults is not None or isinstance(error, OSError)
        code, message = (
            ("storage_error", "The service could not write to its disk, which may be full.")
            if on_disk
            else ("internal_error", "An internal error occurred; the log says more.")
        )
        wrong = {"code": code, "line": None, "message": message, "param": None}
        record.body["errors"] = {"object": "list", "data": [wrong]}
        await self._finish(record, "failed")

    async def _finish(self, record: Record, status: str) -> None:
        """Make files of what was answered, and close the batch."""

        def finish() -> None:
            for name, field in (("output", "output_file_id"), ("errors", "error_file_id")):
                path = self._store.path(record) / f"{name}.jsonl"
                if path.exists():
                    named = "batch_output", f"{record.id}_{name}.jsonl"
                    record.body[field] = file_contents.keep_linked(self._store, record.owner, named, path).id
            batches.mark(self._store, record, status)

        await asyncio.to_thread(finish)


def _is_busy(reply: InternalReply) -> bool:
    """Whether to ask again. A limit without a time to wait is one that the line can never meet."""
    if reply.status == _TOO_MANY:
        return "retry-after" in reply.headers
    error = reply.body.get("error") if isinstance(reply.body, dict) else None
    in_use = isinstance(error, dict) and error.get("code") == _IN_USE
    return reply.status == _UNAVAILABLE or in_use
