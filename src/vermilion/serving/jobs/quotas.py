"""What an organisation may have at once, and what its training has cost; nothing without accounts."""

from __future__ import annotations

from collections.abc import Iterable

from vermilion.accounts import organisations, transactions
from vermilion.accounts.admission import FREE
from vermilion.accounts.clock import SECOND_US
from vermilion.accounts.database import Database
from vermilion.accounts.gate import Accounts
from vermilion.accounts.refusals import AccountInactive, QuotaReached
from vermilion.accounts.sql import StatementCursor
from vermilion.accounts.transactions import LedgerRequest, Settlement
from vermilion.serving.http.auth import VISIT
from vermilion.serving.jobs.job_store import JobStore, Kind, Record
from vermilion.types import Usage

_ROUTE = "/v1/fine_tuning/jobs"
_BYTES_PER_TOKEN = 4
"""Of the text of examples, for the estimate of what a job will train on."""


def check_stored(store: JobStore, owner: str, num_new: int, limit_bytes: int) -> None:
    """Raises `QuotaReached`."""
    if not owner:
        return
    stored = sum(record.body["bytes"] for record in store.all("file", owner))
    if stored + num_new > limit_bytes:
        raise QuotaReached(f"The organisation's files together may hold {limit_bytes} bytes; delete some.")


def check_open(store: JobStore, kind: Kind, owner: str, final: Iterable[str], limit: int) -> None:
    """Raises `QuotaReached`."""
    if not owner:
        return
    num_open = sum(record.body["status"] not in final for record in store.all(kind, owner))
    if num_open >= limit:
        name = {"job": "fine-tuning jobs", "batch": "batches"}.get(kind, kind)
        raise QuotaReached(f"The organisation has {num_open} {name} that are not over, of at most {limit}.")


async def check_training(accounts: Accounts | None, num_bytes: int, num_epochs: float) -> None:
    """Whether the organisation may have so many bytes of examples trained on. Raises what `Visit.begin`
    raises, and `AccountInactive` where free tokens will not do."""
    visit = VISIT.get()
    if accounts is None or visit is None:
        return
    # Admitted like any request, for keys, budgets and limits; what it costs is known at its end.
    request, _ = await visit.begin(0)
    visit.give_back(request)
    state = await accounts.call(organisations.organisation, visit.key.organisation_id)
    estimate = int(num_bytes / _BYTES_PER_TOKEN * num_epochs)
    left = max(0, state.granted_tokens - state.used_tokens)
    if state.plan == FREE and estimate > left:
        raise AccountInactive(f"about {estimate} tokens of training are more than the {left} free ones left.")


async def charge_training(accounts: Accounts | None, record: Record, model: str, num_tokens: int) -> None:
    """Writes a job that is over into the ledger, once, also where it was written before a crash."""
    key_id = record.own.get("key_id")
    if accounts is None or not key_id or await accounts.call(_recorded, record.id):
        return
    request = LedgerRequest(
        record.id, key_id, record.owner, _ROUTE, 0, started_at_us=record.body["created_at"] * SECOND_US
    )
    outcome = {"succeeded": "finished", "failed": "failed"}.get(record.body["status"], "aborted")
    usage = Usage(prompt_tokens=num_tokens)
    await accounts.writer.settle(Settlement(request, training_model(model), outcome, usage))


def training_model(model: str) -> str:
    """Under what name trained tokens are priced: as its input tokens."""
    return f"{model}:training"


def _recorded(database: Database, id: str) -> bool:
    with database.reading() as connection:
        return transactions.recorded(StatementCursor.of(connection), id)
