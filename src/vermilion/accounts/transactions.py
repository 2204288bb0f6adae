"""Admissions and settlements, many in one transaction.

The meters of all keys and organisations concerned are read and locked first, in one order, so that two
processes can neither both take the last of something nor wait for each other. What is decided between
reading and writing is plain Python (`admission.py`, `money.py`, `meters.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from sqlalchemy.engine import Connection

from vermilion.accounts.admission import FREE, Load, Subject, admit
from vermilion.accounts.clock import DAY_US, SECOND_US, day_of
from vermilion.accounts.keys import Key, RateLimits
from vermilion.accounts.meters import Meter, Standing
from vermilion.accounts.money import Price, charge
from vermilion.accounts.refusals import IdempotencyConflict, InvalidKey
from vermilion.accounts.sql import LIMITS, METERS, SUBJECT_COLUMNS, StatementCursor
from vermilion.errors import VermilionError
from vermilion.types import Usage


@dataclass(frozen=True, slots=True)
class LedgerRequest:
    """What the ledger says of a request before it has begun."""

    id: str
    key_id: str
    organisation_id: str
    route: str
    num_prompt_tokens: int
    idempotency_key: str | None = None
    body_digest: str = ""
    started_at_us: int = 0


@dataclass(frozen=True, slots=True)
class Admission:
    request: LedgerRequest
    server: str
    lease_s: float


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a request ended. `reply` is kept for a day where it has an idempotency key and is whole."""

    request: LedgerRequest
    model: str
    outcome: str
    usage: Usage
    reply: str | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """The engine did not take the request: it leaves the running ones, and no trace in the ledger."""

    request: LedgerRequest


Job = Admission | Settlement | Release


@dataclass(frozen=True, slots=True)
class Admitted:
    standing: Standing
    replay: str | None = None
    """The answer that the request's idempotency key already has; nothing was admitted then."""


Result = Admitted | VermilionError | None


def run(cursor: StatementCursor, jobs: Sequence[Job], now_us: int) -> list[Result]:
    """The result of each job, in order; refusals are results. What it writes is for the caller to commit."""
    batch = _Batch(cursor, jobs, now_us)
    results = [batch.do(job) for job in jobs]
    batch.write()
    return results


def renew(cursor: StatementCursor, server: str, lease_s: float, now_us: int) -> None:
    """Goes on holding what `server` has running, and drops what nobody holds or needs any more."""
    cursor.change("renew", [{"of": server, "until_us": now_us + int(lease_s * SECOND_US)}])
    for name in ("expire admissions", "expire replies"):
        cursor.change(name, [{"now_us": now_us}])


def recorded(cursor: StatementCursor, request_id: str) -> bool:
    """Whether the ledger has the request; for a commit whose outcome is unknown."""
    return bool(cursor.rows("recorded", {"request_id": request_id}))


class _Batch:
    def __init__(self, cursor: StatementCursor, jobs: Sequence[Job], now_us: int) -> None:
        self._now_us = now_us
        requests = [job.request for job in jobs]
        organisation_ids = {request.organisation_id for request in requests}
        subjects = sorted({request.key_id for request in requests} | organisation_ids)
        self._cursor = cursor
        self._meters = {row[0]: Meter(*row) for row in self._cursor.rows_of("meters", subjects)}
        key_ids = sorted({request.key_id for request in requests})
        rows = self._cursor.rows_of("subjects", key_ids)
        self._subjects = {subject.key.id: subject for subject in map(_subject, rows)}
        # Before the running ones are counted: whoever has just ended makes room for the next.
        ended = [{"request_id": job.request.id} for job in jobs if not isinstance(job, Admission)]
        self._cursor.change("end", ended)
        self._running: dict[str, int] = {}
        if any(isinstance(job, Admission) for job in jobs):
            self._count(organisation_ids)
        self._prices: dict[str, Price] = {}
        self._inserts: dict[str, list[dict[str, Any]]] = {"admissions": [], "ledger": [], "replies": []}
        self._changed: set[str] = set()

    def do(self, job: Job) -> Result:
        if isinstance(job, Settlement):
            self._settle(job)
        elif isinstance(job, Release):
            # It may have been admitted a moment ago, in this very batch.
            waiting = self._inserts["admissions"]
            waiting[:] = [row for row in waiting if row["request_id"] != job.request.id]
        elif isinstance(job, Admission):
            try:
                return self._admit(job)
            except VermilionError as error:
                # Its traceback would take the cursor along to another thread, and end it there.
                return error.with_traceback(None)
        return None

    def write(self) -> None:
        """Everything decided so far."""
        for table, rows in self._inserts.items():
            self._cursor.change(table, rows)
        rows = [_meter_row(self._meters[subject]) for subject in sorted(self._changed)]
        self._cursor.change("update", rows)

    def _count(self, organisation_ids: Iterable[str]) -> None:
        rows = self._cursor.rows_of("running", sorted(organisation_ids), now_us=self._now_us)
        for key_id, organisation_id, count in rows:
            self._running[key_id] = count
            self._running[organisation_id] = self._running.get(organisation_id, 0) + count

    def _admit(self, job: Admission) -> Admitted:
        request = job.request
        subject = self._subjects.get(request.key_id)
        if subject is None:
            raise InvalidKey("This API key does not exist.")
        if request.idempotency_key:
            replay = self._answered(request)
            if replay is not None:
                return Admitted(Standing(), replay)
        load = Load(
            self._meter(request.key_id, subject.key.limits),
            self._meter(request.organisation_id, subject.limits),
            self._running.get(request.key_id, 0),
            self._running.get(request.organisation_id, 0),
        )
        load, left = admit(subject, load, request.num_prompt_tokens, self._now_us)
        self._running[request.key_id] = load.running_key
        self._running[request.organisation_id] = load.running_organisation
        self._put(load.key, load.organisation)
        self._inserts["admissions"].append(
            {
                "request_id": request.id,
                "organisation_id": request.organisation_id,
                "key_id": request.key_id,
                "server": job.server,
                "idempotency_key": request.idempotency_key,
                "expires_at_us": self._now_us + int(job.lease_s * SECOND_US),
            }
        )
        return Admitted(left)

    def _answered(self, request: LedgerRequest) -> str | None:
        """The kept answer of the request's idempotency key; raises where it has none to give."""
        given = {
            "organisation": request.organisation_id,
            "key": request.idempotency_key,
            "now_us": self._now_us,
        }
        rows = self._inserts["admissions"]
        running = any(
            row["organisation_id"] == request.organisation_id
            and row["idempotency_key"] == request.idempotency_key
            for row in rows
        )
        if running or self._cursor.rows("same running", given):
            raise IdempotencyConflict(
                "A request with this idempotency key is still running.", "idempotency_key_in_use", 1
            )
        found = self._cursor.rows("same answered", given)
        if not found:
            return None
        body_digest, events = found[0]
        if events is None:
            raise IdempotencyConflict(
                "This idempotency key was used more than a day ago.", "idempotency_key_used"
            )
        if body_digest != request.body_digest:
            raise IdempotencyConflict(
                "This idempotency key was used for another request.", "idempotency_key_reused"
            )
        return str(events)

    def _settle(self, job: Settlement) -> None:
        request, usage, now_us = job.request, job.usage, self._now_us
        subject = self._subjects[request.key_id]
        key = self._meter(request.key_id, subject.key.limits)
        organisation = self._meter(request.organisation_id, subject.limits)
        num_tokens = usage.prompt_tokens + usage.completion_tokens
        price = self._price(job.model)
        cost = charge(usage, num_tokens if subject.plan == FREE else organisation.free_tokens, price)
        counted = request.num_prompt_tokens
        self._put(key.settled(usage, counted, cost.amount), organisation.settled(usage, counted, cost.amount))
        self._inserts["ledger"].append(
            {
                "request_id": request.id,
                "organisation_id": request.organisation_id,
                "key_id": request.key_id,
                "model": job.model,
                "route": request.route,
                "outcome": job.outcome,
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "completion_tokens": usage.completion_tokens,
                "passes": usage.passes,
                "charged_input": cost.input,
                "charged_cached": cost.cached,
                "charged_output": cost.output,
                "price_id": price.id,
                "amount": cost.amount,
                "started_at_us": request.started_at_us,
                "settled_at_us": now_us,
                "day": day_of(now_us),
                "idempotency_key": request.idempotency_key if job.reply is not None else None,
            }
        )
        if job.reply is not None:
            self._inserts["replies"].append(
                {
                    "organisation_id": request.organisation_id,
                    "idempotency_key": request.idempotency_key,
                    "body_digest": request.body_digest,
                    "events": job.reply,
                    "expires_at_us": now_us + DAY_US,
                }
            )

    def _meter(self, subject: str, limits: RateLimits) -> Meter:
        return self._meters[subject].at(self._now_us, limits)

    def _put(self, *changed: Meter) -> None:
        for meter in changed:
            self._meters[meter.subject] = meter
            self._changed.add(meter.subject)

    def _price(self, model: str) -> Price:
        if model not in self._prices:
            self._prices[model] = _price_of(self._cursor, model, self._now_us)
        return self._prices[model]


def price_of(connection: Connection, model: str, now_us: int) -> Price:
    """The price in force: of the model, else of every model."""
    return _price_of(StatementCursor.of(connection), model, now_us)


def _price_of(cursor: StatementCursor, model: str, now_us: int) -> Price:
    (row,) = cursor.rows("price", {"model": model, "now_us": now_us})
    return Price(*row)


def key_of(row: Any) -> Key:
    """From a row of `keys`."""
    return Key(
        id=row.id,
        organisation_id=row.organisation_id,
        name=row.name,
        digest=row.digest,
        scopes=frozenset(row.scopes.split()),
        created_at_us=row.created_at_us,
        expires_at_us=row.expires_at_us,
        revoked_at_us=row.revoked_at_us,
        limits=RateLimits(*(getattr(row, name) for name in LIMITS)),
    )


@lru_cache(1024)
def _subject(values: tuple[Any, ...]) -> Subject:
    """Of a row of the statement `subjects`, which is read for every request and seldom another."""
    row = SimpleNamespace(**dict(zip(SUBJECT_COLUMNS, values, strict=True)))
    limits = RateLimits(*(getattr(row, f"organisation_{name}") for name in LIMITS))
    return Subject(key_of(row), row.plan, bool(row.disabled), limits)


def _meter_row(meter: Meter) -> dict[str, Any]:
    return {f"new_{name}": getattr(meter, name) for name in METERS}
