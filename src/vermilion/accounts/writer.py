"""The one thread that writes what requests do, as many of them in one transaction as are waiting.

A settlement's future is resolved after its commit has returned, and that commit is flushed to the disk:
who awaits it may promise the usage. Admissions promise nothing that a crash could break, so a transaction
of admissions alone is committed without waiting for the disk; on SQLite that is still a file which a killed
process leaves behind whole.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from sqlalchemy import PoolProxiedConnection
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from vermilion.accounts import transactions
from vermilion.accounts.clock import now_us
from vermilion.accounts.database import Database
from vermilion.accounts.refusals import AccountsUnavailable
from vermilion.accounts.sql import StatementCursor
from vermilion.accounts.transactions import Admission, Job, LedgerRequest, Release, Result, Settlement

LEASE_S = 15.0
"""How long the running requests of a server that died go on counting as running."""

_MOST_JOBS = 256
_PAUSES_S = (0.05, 0.25, 1.0)
"""Before each further try of a transaction that failed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Ask:
    job: Job
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Result] | None


class Writer:
    """Takes jobs from event loops; `close` returns when everything taken is written."""

    def __init__(self, store: Database, server: str, lease_s: float = LEASE_S) -> None:
        self.lease_s = lease_s
        self.server = server
        self._store = store
        driver = store.engine.dialect.loaded_dbapi
        # What every request needs goes to the driver itself (see sql.py), connections come from SQLAlchemy.
        self._failures: tuple[type[Exception], ...] = (SQLAlchemyError, driver.Error)
        self._conflicts: tuple[type[Exception], ...] = (IntegrityError, driver.IntegrityError)
        self._connection: PoolProxiedConnection | None = None
        self._durable: bool | None = None
        """What SQLite's connection was last told of its transactions."""
        self._owed: list[Settlement | Release] = []
        """What could not be written yet; tried again with every renewal."""
        self._asks: queue.SimpleQueue[_Ask | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="accounts", daemon=True)
        self._thread.start()

    async def admit(self, request: LedgerRequest) -> transactions.Admitted:
        """Raises what `admission.admit` raises, and `AccountsUnavailable`."""
        try:
            result = await self._ask(Admission(request, self.server, self.lease_s))
        except asyncio.CancelledError:
            # The client left meanwhile; nobody would ever end what may have been admitted.
            self.put(Release(request))
            raise
        assert isinstance(result, transactions.Admitted)
        return result

    async def settle(self, settlement: Settlement) -> None:
        """Returns once it is durable. Raises `AccountsUnavailable` where it may not be."""
        await self._ask(settlement)

    def put(self, job: Job) -> None:
        """Has it written soon; for a request that nobody waits for any more."""
        self._asks.put(_Ask(job, asyncio.get_running_loop(), None))

    def close(self) -> None:
        self._asks.put(None)
        self._thread.join()

    async def _ask(self, job: Job) -> Result:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._asks.put(_Ask(job, loop, future))
        result = await future
        if isinstance(result, Exception):
            raise result
        return result

    def _run(self) -> None:
        due_s = 0.0
        open_ = True
        while open_:
            asks, open_ = self._taken()
            results: list[Result] = []
            if asks:
                results = self._written([ask.job for ask in asks])
                _deliver(asks, results)
            if time.monotonic() >= due_s or not open_:
                self._renew()
                due_s = time.monotonic() + self.lease_s / 3
        self._drop()
        for job in self._owed:
            if isinstance(job, Settlement):
                _log.error("accounts: %s was never recorded: %s", job.request.id, job.usage)

    def _taken(self) -> tuple[list[_Ask], bool]:
        """What is waiting, after waiting for the first; False when it was the last."""
        asks: list[_Ask] = []
        with suppress(queue.Empty):
            ask = self._asks.get(timeout=self.lease_s / 3)
            while ask is not None:
                asks.append(ask)
                if len(asks) == _MOST_JOBS:
                    return asks, True
                ask = self._asks.get_nowait()
            return asks, False
        return asks, True

    def _written(self, jobs: Sequence[Job]) -> list[Result]:
        """Together; where that fails each alone, so that one cannot spoil the others."""
        try:
            return self._transaction(jobs)
        except self._failures as error:
            _log.warning("accounts: a transaction of %d is tried again: %s", len(jobs), _kind(error))
            self._drop()
        results: list[Result] = []
        reachable = True
        for job in jobs:
            # When one has waited in vain for the database to come back, the others have waited as long.
            results.append(self._alone(job) if reachable else self._given_up(job))
            if reachable and isinstance(results[-1], AccountsUnavailable):
                reachable = self._reachable()
        return results

    def _alone(self, job: Job) -> Result:
        """One job, tried until it is written or the tries are used up.

        A commit whose connection broke may have happened: the ledger knows of a settlement; an admission is
        taken back before it is tried again (the limits of the minute then count it twice).
        """
        for pause_s in _PAUSES_S:
            time.sleep(pause_s)
            try:
                if isinstance(job, Settlement) and self._recorded(job):
                    return None
                first = [Release(job.request)] if isinstance(job, Admission) else []
                return self._transaction([*first, job])[-1]
            except self._conflicts:
                self._drop()
                if isinstance(job, Settlement):
                    # Another server has answered the same idempotency key; this answer counts by itself.
                    job = replace(job, reply=None)
            except self._failures:
                self._drop()
        return self._given_up(job)

    def _given_up(self, job: Job) -> Result:
        """Whoever waited is told that it failed; what it used, or may still hold, stays owed."""
        _log.error("accounts: %s could not be recorded", job.request.id)
        if isinstance(job, Settlement):
            self._owed.append(replace(job, outcome="failed", reply=None))
        else:
            self._owed.append(Release(job.request))
        return AccountsUnavailable()

    def _reachable(self) -> bool:
        try:
            with self._begun(durable=False):
                return True
        except self._failures:
            self._drop()
            return False

    def _recorded(self, job: Settlement | Release) -> bool:
        with self._begun(durable=False) as cursor:
            return transactions.recorded(cursor, job.request.id)

    def _transaction(self, jobs: Sequence[Job]) -> list[Result]:
        durable = any(isinstance(job, Settlement) for job in jobs)
        with self._begun(durable) as cursor:
            return transactions.run(cursor, jobs, now_us())

    @contextmanager
    def _begun(self, durable: bool) -> Iterator[StatementCursor]:
        """A transaction, on the disk once it has ended if it is `durable`."""
        if self._connection is None:
            self._connection = self._store.engine.raw_connection()
            self._durable = None
        connection = self._connection
        cursor = StatementCursor(connection.cursor(), self._store.engine.dialect.name)
        if self._store.is_sqlite:
            if durable is not self._durable:
                cursor.tell(_SQLITE_DURABLE if durable else _SQLITE_RELAXED)
                self._durable = durable
            cursor.tell("BEGIN IMMEDIATE")
        elif not durable:
            cursor.tell(_POSTGRESQL_RELAXED)
        try:
            yield cursor
            cursor.close()
        except BaseException:
            with suppress(*self._failures):
                cursor.close()
                connection.rollback()
            raise
        connection.commit()

    def _renew(self) -> None:
        try:
            with self._begun(durable=False) as cursor:
                transactions.renew(cursor, self.server, self.lease_s, now_us())
            while self._owed and (self._recorded(self._owed[0]) or self._transaction(self._owed[:1])):
                self._owed.pop(0)
        except self._failures as error:
            _log.warning("accounts: leases could not be renewed: %s", _kind(error))
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(*self._failures):
                self._connection.close()
            self._connection = None


def _kind(error: Exception) -> str:
    """For the log: without its message, which may quote what stands in the tables."""
    code = getattr(error, "sqlite_errorname", None) or getattr(error, "sqlstate", None)
    return f"{type(error).__name__} {code or ''}".rstrip()


_POSTGRESQL_RELAXED = "SET LOCAL synchronous_commit = off"
_SQLITE_DURABLE = "PRAGMA synchronous = FULL"
_SQLITE_RELAXED = "PRAGMA synchronous = NORMAL"
"""SQLite changes this between transactions alone, PostgreSQL within one."""


def _deliver(asks: Sequence[_Ask], results: Sequence[Result]) -> None:
    """One wake-up per event loop, however many of its requests are answered."""
    of_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Result], Result]]] = defaultdict(list)
    for ask, result in zip(asks, results, strict=True):
        if ask.future is not None:
            of_loop[ask.loop].append((ask.future, result))
    for loop, answered in of_loop.items():
        # A loop that was closed has nobody left to hear.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, answered)


def _resolve(answered: Sequence[tuple[asyncio.Future[Result], Result]]) -> None:
    for future, result in answered:
        if not future.done():
            future.set_result(result)
