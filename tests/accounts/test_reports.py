"""Usage and invoices add up to the ledger, whatever was charged under whichever price."""

from __future__ import annotations

import asyncio
import csv
import io
import random
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from accounts.conftest import Clock
from vermilion.accounts import organisations, reports
from vermilion.accounts.clock import parsed_us
from vermilion.accounts.database import Database
from vermilion.accounts.money import per_token
from vermilion.accounts.organisations import NewKey, NewOrganisation
from vermilion.accounts.refusals import AccountNotFound
from vermilion.accounts.transactions import LedgerRequest, Settlement
from vermilion.accounts.writer import Writer
from vermilion.errors import BadParameter
from vermilion.types import Usage

pytestmark = pytest.mark.anyio


@pytest.fixture
async def busy(store: Database, clock: Clock) -> str:
    """An organisation with 60 requests of two keys and models over five days, two months and two prices."""
    new = NewOrganisation("Acme", "a@example.org", plan="paid", free_tokens=500)
    id, _, first = organisations.create_organisation(store, new)
    second = organisations.create_key(store, id, NewKey("ci"))
    other = organisations.create_organisation(store, NewOrganisation("Other", "o@example.org", plan="paid"))[
        2
    ]
    clock.now_us = parsed_us("2026-01-29T00:00:00")
    chance = random.Random(1)
    accounts = Writer(store, "one", lease_s=1e6)
    for number in range(60):
        clock.advance(2 * 3600)
        if number == 40:
            reports.set_price(store, "tiny", [per_token("x", text) for text in ("0.333333", "0.01", "7.5")])
        key = chance.choice((first.key, second.key, other.key))
        request = LedgerRequest(f"r{number}", key.id, key.organisation_id, "/v1/x", 9)
        usage = Usage(chance.randrange(20, 99), chance.randrange(20), chance.randrange(99), 7)
        await accounts.settle(Settlement(request, chance.choice(("tiny", "large")), "finished", usage))
    await asyncio.to_thread(accounts.close)
    return id


def ledger(store: Database, organisation_id: str, month: str = "") -> list[Any]:
    with store.reading() as connection:
        text = "SELECT * FROM ledger WHERE organisation_id = :id AND day LIKE :month"
        return list(connection.execute(sa.text(text), {"id": organisation_id, "month": f"{month}%"}))


@pytest.mark.parametrize("by", [(), ("day",), ("key", "model"), ("day", "key", "model")])
async def test_usage_adds_up_to_the_ledger_however_it_is_grouped(
    store: Database, busy: str, by: tuple[str, ...]
) -> None:
    rows = ledger(store, busy)
    told = reports.usage(store, busy, reports.span("2026-01-01", "2026-02-28"), by)
    for name in ("prompt_tokens", "cached_tokens", "completion_tokens"):
        assert sum(row[name] for row in told) == sum(getattr(row, name) for row in rows)
    assert sum(row["requests"] for row in told) == len(rows)
    assert sum(Decimal(row["amount"]) for row in told) == sum(Decimal(row.amount) for row in rows) / 10**12
    slow = {tuple(getattr(row, {"key": "key_id"}.get(name, name)) for name in by) for row in rows}
    assert [tuple(row[name] for name in by) for row in told] == sorted(slow)


async def test_days_are_counted_from_the_first_to_the_last_inclusive(store: Database, busy: str) -> None:
    days = reports.span("2026-01-30", "2026-01-31")
    told = reports.usage(store, busy, days, ("day",))
    assert [row["day"] for row in told] == ["2026-01-30", "2026-01-31"]
    assert sum(row["requests"] for row in told) == sum(
        row.day in ("2026-01-30", "2026-01-31") for row in ledger(store, busy)
    )


async def test_the_csv_says_what_the_rows_say(store: Database, busy: str) -> None:
    rows = reports.usage(store, busy, reports.span("2026-01-01", "2026-02-28"))
    read = list(csv.DictReader(io.StringIO(reports.as_csv(rows))))
    assert read == [{name: str(value) for name, value in row.items()} for row in rows]


async def test_an_invoice_adds_up_to_the_ledger_to_the_last_digit(store: Database, busy: str) -> None:
    assert reports.months(store, busy) == ["2026-01", "2026-02"]
    for month, status in (("2026-01", "closed"), ("2026-02", "open")):
        bill = reports.invoice(store, busy, month)
        rows = ledger(store, busy, month)
        exact = sum(Decimal(row.amount) for row in rows) / 10**12
        assert Decimal(bill["total"]) == exact == sum(Decimal(line["amount"]) for line in bill["lines"])
        for line in bill["lines"]:
            parts = [Decimal(part["price_per_million"]) * part["tokens"] / 10**6 for part in line["charges"]]
            assert parts == [Decimal(part["amount"]) for part in line["charges"]]
            assert sum(parts) == Decimal(line["amount"])
        assert bill["status"] == status
        assert abs(Decimal(bill["payable"]) - exact) <= Decimal("0.005")
        charged = sum(row.charged_input + row.charged_cached + row.charged_output for row in rows)
        assert bill["free_tokens"] == sum(row.prompt_tokens + row.completion_tokens for row in rows) - charged
    prices = {(line["model"], line["charges"][2]["price_per_million"]) for line in bill["lines"]}
    assert ("tiny", "7.5") in prices and ("large", "1") in prices
    first = reports.invoice(store, busy, "2026-01")
    assert {line["charges"][2]["price_per_million"] for line in first["lines"]} == {"1"}


async def test_the_grant_is_used_up_exactly(store: Database, busy: str) -> None:
    free = sum(reports.invoice(store, busy, month)["free_tokens"] for month in ("2026-01", "2026-02"))
    assert free == 500


def test_a_price_holds_from_its_moment_on_and_not_before(store: Database) -> None:
    reports.set_price(store, "tiny", [1, 2, 3], "2999-01-01T00:00:00")
    assert [row["model"] for row in reports.list_prices(store)] == ["*", "tiny"]
    with pytest.raises(BadParameter, match="still to come"):
        reports.set_price(store, "tiny", [1, 2, 3], "2020-01-01")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda store: reports.span("2026-02-30", None),
        lambda store: reports.span(None, "20260201"),
        lambda store: reports.groups(["route"]),
        lambda store: reports.invoice(store, "x", "2026-13"),
        lambda store: reports.set_price(store, "m", [1, 2, 3], "soon"),
    ],
)
def test_questions_that_mean_nothing_are_refused(store: Database, wrong) -> None:
    with pytest.raises(BadParameter):
        wrong(store)


def test_an_invoice_of_nobody_is_a_404(store: Database) -> None:
    with pytest.raises(AccountNotFound):
        reports.invoice(store, "nobody", "2026-01")
