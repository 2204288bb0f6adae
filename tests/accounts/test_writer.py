"""What the ledger says after requests were admitted, answered, given up and asked again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from accounts.conftest import Clock, until
from vermilion.accounts import organisations, transactions, writer
from vermilion.accounts.clock import SECOND_US
from vermilion.accounts.database import Database
from vermilion.accounts.keys import RateLimits
from vermilion.accounts.organisations import NewOrganisation, Secret
from vermilion.accounts.refusals import AccountsUnavailable, IdempotencyConflict, RateLimited
from vermilion.accounts.sql import StatementCursor
from vermilion.accounts.transactions import Admission, LedgerRequest, Release, Settlement
from vermilion.accounts.writer import Writer
from vermilion.types import Usage

pytestmark = pytest.mark.anyio
USAGE = Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=20, passes=5)


def organisation(store: Database, **given: Any) -> Secret:
    return organisations.create_organisation(store, NewOrganisation("Acme", "a@example.org", **given))[2]


def request(secret: Secret, number: int, **given: Any) -> LedgerRequest:
    return LedgerRequest(f"req-{number}", secret.key.id, secret.key.organisation_id, "/v1/x", 10, **given)


@asynccontextmanager
async def writing(store: Database, server: str = "one", lease_s: float = 15.0) -> AsyncIterator[Writer]:
    opened = Writer(store, server, lease_s)
    try:
        yield opened
    finally:
        await asyncio.to_thread(opened.close)


def ledger(store: Database) -> list[Any]:
    with store.reading() as connection:
        return list(connection.execute(sa.text("SELECT * FROM ledger ORDER BY id")))


async def test_a_request_is_in_the_ledger_once_with_its_price_before_settle_returns(store: Database) -> None:
    secret = organisation(store, plan="paid", free_tokens=12)
    async with writing(store) as accounts:
        await accounts.admit(request(secret, 1))
        await accounts.settle(Settlement(request(secret, 1), "m", "finished", USAGE))
        (row,) = ledger(store)
    assert (row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.passes) == (10, 4, 20, 5)
    # The grant covers the cached tokens, the other six of the prompt and two of the answer.
    assert (row.charged_input, row.charged_cached, row.charged_output, row.amount) == (0, 0, 18, 18_000_000)
    state = organisations.organisation(store, secret.key.organisation_id)
    assert (state.used_tokens, state.month_spent) == (30, 18_000_000)


async def test_many_at_once_are_each_written_once_and_the_meters_say_what_the_ledger_says(
    store: Database, count
) -> None:
    secret = organisation(store, plan="paid", free_tokens=100)
    async with writing(store) as accounts:

        async def one(number: int) -> None:
            asked = request(secret, number)
            await accounts.admit(asked)
            await accounts.settle(
                Settlement(asked, "m", "finished", replace(USAGE, completion_tokens=number))
            )

        await asyncio.gather(*(one(number) for number in range(120)))
        rows = ledger(store)
    assert sorted(row.request_id for row in rows) == sorted(f"req-{number}" for number in range(120))
    state = organisations.organisation(store, secret.key.organisation_id)
    assert state.used_tokens == sum(row.prompt_tokens + row.completion_tokens for row in rows)
    assert state.month_spent == sum(row.amount for row in rows) > 0
    assert sum(row.charged_input + row.charged_cached + row.charged_output for row in rows) == (
        state.used_tokens - 100
    )
    assert count("admissions") == 0


async def test_a_request_nobody_waits_for_is_written_before_close_returns(store: Database) -> None:
    secret = organisation(store)
    async with writing(store) as accounts:
        await accounts.admit(request(secret, 1))
        accounts.put(Settlement(request(secret, 1), "m", "aborted", Usage(10, 0, 3)))
    (row,) = ledger(store)
    assert (row.outcome, row.completion_tokens, row.amount) == ("aborted", 3, 0)


async def test_a_refusal_takes_nothing_of_the_writers_thread_along(store: Database) -> None:
    """Its frames would hold the cursor until another thread drops them, in the middle of a transaction."""
    secret = organisation(store, limits=RateLimits(concurrency=1))
    async with writing(store) as accounts:
        await accounts.admit(request(secret, 1))
        with pytest.raises(RateLimited) as refused:
            await accounts.admit(request(secret, 2))
        assert not any(entry.path.name == "transactions.py" for entry in refused.traceback)


async def test_a_request_the_engine_refused_leaves_no_trace(store: Database, count) -> None:
    secret = organisation(store, limits=RateLimits(concurrency=1))
    async with writing(store) as accounts:
        await accounts.admit(request(secret, 1))
        with pytest.raises(RateLimited):
            await accounts.admit(request(secret, 2))
        accounts.put(Release(request(secret, 1)))
        await accounts.admit(request(secret, 3))
    assert (count("ledger"), count("admissions")) == (0, 1)


async def test_a_client_that_leaves_while_it_is_admitted_holds_no_place(store: Database, count) -> None:
    """Its admission and its release are then written together."""
    secret = organisation(store)
    left, stays = request(secret, 1), request(secret, 2)
    jobs = [Admission(left, "one", 15.0), Admission(stays, "one", 15.0), Release(left)]
    with store.writing() as connection:
        transactions.run(StatementCursor.of(connection), jobs, writer.now_us())
    assert count("admissions") == 1


async def test_running_requests_count_over_servers_and_run_out_with_a_dead_one(
    store: Database, clock: Clock
) -> None:
    secret = organisation(store, limits=RateLimits(concurrency=1))
    async with writing(store, "other") as other:
        async with writing(store, "dies", lease_s=60) as dying:
            await dying.admit(request(secret, 1))
            with pytest.raises(RateLimited, match="1 requests at once"):
                await other.admit(request(secret, 2))
        # Its thread has ended and left its request running, as that of a killed process does.
        clock.advance(59)
        with pytest.raises(RateLimited):
            await other.admit(request(secret, 3))
        clock.advance(2)
        await other.admit(request(secret, 4))


async def test_a_lease_is_renewed_while_its_server_lives(store: Database, clock: Clock) -> None:
    secret = organisation(store, limits=RateLimits(concurrency=1))
    lease_s = 0.3

    def renewed() -> bool:
        with store.reading() as connection:
            until_us = connection.execute(sa.text("SELECT expires_at_us FROM admissions")).scalar_one()
        return bool(until_us == clock.now_us + lease_s * SECOND_US)

    async with writing(store, lease_s=lease_s) as accounts:
        await accounts.admit(request(secret, 1))
        for _ in range(3):
            clock.advance(0.2)
            await until(renewed)
        with pytest.raises(RateLimited):
            await accounts.admit(request(secret, 2))


async def test_an_idempotency_key_gives_its_answer_again_and_is_charged_once(store: Database, count) -> None:
    secret = organisation(store)
    same = {"idempotency_key": "mine", "body_digest": "d"}
    async with writing(store) as accounts:
        assert (await accounts.admit(request(secret, 1, **same))).replay is None
        with pytest.raises(IdempotencyConflict, match="still running"):
            await accounts.admit(request(secret, 2, **same))
        settlement = Settlement(request(secret, 1, **same), "m", "finished", USAGE, reply="the answer")
        await accounts.settle(settlement)
        assert (await accounts.admit(request(secret, 3, **same))).replay == "the answer"
        with pytest.raises(IdempotencyConflict, match="another request"):
            await accounts.admit(request(secret, 4, idempotency_key="mine", body_digest="other"))
    assert (count("ledger"), count("admissions")) == (1, 0)


async def test_an_aborted_request_may_be_tried_again_under_its_idempotency_key(
    store: Database, count
) -> None:
    secret = organisation(store)
    same = {"idempotency_key": "mine", "body_digest": "d"}
    async with writing(store) as accounts:
        await accounts.admit(request(secret, 1, **same))
        await accounts.settle(Settlement(request(secret, 1, **same), "m", "aborted", Usage(10, 0, 1)))
        assert (await accounts.admit(request(secret, 2, **same))).replay is None
        await accounts.settle(Settlement(request(secret, 2, **same), "m", "finished", USAGE, reply="x"))
    assert count("ledger") == 2


async def test_kept_answers_go_after_a_day_and_their_keys_stay_used(
    store: Database, clock: Clock, count
) -> None:
    secret = organisation(store)
    same = {"idempotency_key": "mine", "body_digest": "d"}
    async with writing(store) as accounts:
        await accounts.admit(request(secret, 1, **same))
        await accounts.settle(Settlement(request(secret, 1, **same), "m", "finished", USAGE, reply="x"))
    clock.advance(24 * 3600)
    async with writing(store) as accounts:
        await accounts.admit(request(secret, 2))
        await until(lambda: count("replies") == 0)
        with pytest.raises(IdempotencyConflict, match="more than a day ago"):
            await accounts.admit(request(secret, 3, **same))


async def test_writing_the_same_settlement_again_after_a_lost_connection_counts_once(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit happened, and its connection broke before it said so."""
    secret = organisation(store)
    async with writing(store) as accounts:
        await accounts.admit(request(secret, 1))
        whole = accounts._transaction
        lost: list[bool] = []

        def losing(jobs: Any) -> Any:
            results = whole(jobs)
            if not lost:
                lost.append(True)
                raise sa.exc.OperationalError("COMMIT", {}, Exception("connection lost"))
            return results

        monkeypatch.setattr(accounts, "_transaction", losing)
        await accounts.settle(Settlement(request(secret, 1), "m", "finished", USAGE))
    assert lost and len(ledger(store)) == 1
    assert organisations.organisation(store, secret.key.organisation_id).used_tokens == 30


def losing(accounts: Writer, num_times: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Transactions are committed, and the connection breaks before that is known; gives those lost."""
    whole, lost = accounts._transaction, []

    def transaction(jobs: Any) -> Any:
        results = whole(jobs)
        if len(lost) < num_times:
            lost.append(len(jobs))
            raise sa.exc.OperationalError("COMMIT", {}, Exception("connection lost"))
        return results

    monkeypatch.setattr(accounts, "_transaction", transaction)
    monkeypatch.setattr(writer, "_PAUSES_S", (0.0, 0.0))
    return lost


async def test_an_admission_whose_commit_was_not_heard_of_holds_one_place(
    store: Database, monkeypatch: pytest.MonkeyPatch, count
) -> None:
    secret = organisation(store, limits=RateLimits(concurrency=1))
    async with writing(store) as accounts:
        lost = losing(accounts, 1, monkeypatch)
        await accounts.admit(request(secret, 1))
        assert lost and count("admissions") == 1
        accounts.put(Release(request(secret, 1)))
        await accounts.admit(request(secret, 2))


async def test_an_admission_that_was_given_up_holds_no_place_for_long(
    store: Database, monkeypatch: pytest.MonkeyPatch, count
) -> None:
    """Its client was told 503, and its server lives and renews what it holds."""
    secret = organisation(store, limits=RateLimits(concurrency=1))
    async with writing(store, lease_s=3600) as accounts:
        lost = losing(accounts, 3, monkeypatch)
        with pytest.raises(AccountsUnavailable):
            await accounts.admit(request(secret, 1))
        await until(lambda: count("admissions") == 0)
        assert len(lost) == 3
        await accounts.admit(request(secret, 2))


async def test_while_the_database_is_away_nobody_waits_for_the_tries_of_others(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = organisation(store)
    monkeypatch.setattr(writer, "_PAUSES_S", (0.0, 0.0))
    tries: list[bool] = []
    async with writing(store) as accounts:

        def away(durable: bool) -> Any:
            tries.append(durable)
            raise sa.exc.OperationalError("BEGIN", {}, Exception("no route to host"))

        monkeypatch.setattr(accounts, "_begun", away)
        asked = [accounts.admit(request(secret, number)) for number in range(60)]
        results = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(result) for result in results} == {AccountsUnavailable}
    assert len(tries) < 60


async def test_a_database_that_fails_lets_nothing_pass(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = organisation(store)
    monkeypatch.setattr(writer, "_PAUSES_S", (0.0, 0.0))
    async with writing(store) as accounts:

        def broken(jobs: Any) -> Any:
            raise sa.exc.OperationalError("BEGIN", {}, Exception("no route to host"))

        monkeypatch.setattr(accounts, "_transaction", broken)
        with pytest.raises(AccountsUnavailable):
            await accounts.admit(request(secret, 1))


async def test_two_answers_to_one_idempotency_key_are_both_recorded_and_one_is_kept(
    store: Database, monkeypatch: pytest.MonkeyPatch, clock: Clock, count
) -> None:
    """A server stood still for longer than its lease, and another took the request up meanwhile."""
    secret = organisation(store)
    monkeypatch.setattr(writer, "_PAUSES_S", (0.0, 0.0))
    same = {"idempotency_key": "mine", "body_digest": "d"}
    async with writing(store, "slow") as slow, writing(store, "quick") as quick:
        monkeypatch.setattr(slow, "_renew", lambda: None)
        await slow.admit(request(secret, 1, **same))
        clock.advance(slow.lease_s + 1)
        await quick.admit(request(secret, 2, **same))
        await quick.settle(Settlement(request(secret, 2, **same), "m", "finished", USAGE, reply="first"))
        await slow.settle(Settlement(request(secret, 1, **same), "m", "finished", USAGE, reply="second"))
    assert [(row.request_id, row.idempotency_key) for row in ledger(store)] == [
        ("req-2", "mine"),
        ("req-1", None),
    ]
    assert count("replies") == 1


async def test_a_connection_that_the_server_ended_is_opened_anew(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if store.is_sqlite:
        pytest.skip("SQLite has no server")
    secret = organisation(store)
    monkeypatch.setattr(writer, "_PAUSES_S", (0.0, 0.1))
    async with writing(store) as accounts:
        await accounts.admit(request(secret, 1))
        with store.writing() as connection:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            mine = "pid <> pg_backend_pid() AND datname = current_database()"
            connection.execute(sa.text(f"{others} WHERE {mine}"))
        await accounts.settle(Settlement(request(secret, 1), "m", "finished", USAGE))
    assert len(ledger(store)) == 1
