"""What the ledger adds up to: usage by day, key and model, and invoices.

Both are read from the ledger whenever they are asked for, so there is no second book that could differ from
it. A month is invoiced by the days on which its requests were settled; once it is over, nothing is added.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import sqlalchemy as sa

from vermilion.accounts.clock import day_of, now_us, parsed_us
from vermilion.accounts.database import Database
from vermilion.accounts.money import cents, written
from vermilion.accounts.refusals import AccountNotFound
from vermilion.accounts.schema import ledger, organisations, prices
from vermilion.errors import BadParameter

GROUPS = ("day", "key", "model")
_COLUMNS = {"day": ledger.c.day, "key": ledger.c.key_id, "model": ledger.c.model}
_COUNTS = (
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "charged_input",
    "charged_cached",
    "charged_output",
    "amount",
)
_MILLION = 1_000_000
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True)
class Span:
    """Days from `first` to `last`, both included, as `2026-01-31`."""

    first: str
    last: str


def span(first: str | None, last: str | None) -> Span:
    """The given days; the current month up to today where left out. Raises `BadParameter`."""
    today = day_of(now_us())
    given = {"from": first or f"{(last or today)[:7]}-01", "to": last or today}
    for name, value in given.items():
        try:
            date.fromisoformat(value)
        except ValueError:
            raise BadParameter(name, value, "a day such as 2026-01-31") from None
        if len(value) != len("2026-01-31"):
            raise BadParameter(name, value, "a day such as 2026-01-31")
    return Span(given["from"], given["to"])


def groups(names: Iterable[str]) -> tuple[str, ...]:
    """Raises `BadParameter` for what usage cannot be grouped by."""
    wanted = tuple(dict.fromkeys(names))
    for name in wanted:
        if name not in GROUPS:
            raise BadParameter("group_by", name, ", ".join(GROUPS))
    return wanted


def usage(
    store: Database, organisation_id: str, days: Span, by: Sequence[str] = GROUPS
) -> list[dict[str, Any]]:
    """One row per group, in order: its names, `requests`, sums of tokens, and `amount` in exact dollars."""
    columns = [_COLUMNS[name].label(name) for name in by]
    wanted = (
        sa.select(*columns, *_sums())
        .where(ledger.c.organisation_id == organisation_id, ledger.c.day.between(days.first, days.last))
        .group_by(*columns)
        .order_by(*columns)
    )
    with store.reading() as connection:
        rows = [_numbers(row._asdict()) for row in connection.execute(wanted)]
    return [{**row, "amount": written(row["amount"])} for row in rows if row["requests"]]


def as_csv(rows: Sequence[dict[str, Any]], by: Sequence[str] = GROUPS) -> str:
    """Comma-separated, with a line of names first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*by, "requests", *_COUNTS], lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def months(store: Database, organisation_id: str) -> list[str]:
    """Months with anything in the ledger, oldest first."""
    month = sa.func.substr(ledger.c.day, 1, 7)
    wanted = sa.select(month).where(ledger.c.organisation_id == organisation_id).distinct().order_by(month)
    with store.reading() as connection:
        return list(connection.execute(wanted).scalars())


def invoice(store: Database, organisation_id: str, month: str) -> dict[str, Any]:
    """The month's charges, a line per model and price. `total` is exact: the sum of the ledger's amounts
    and of the lines, to the last digit; `payable` is it in whole cents.

    Raises `AccountNotFound`, and `BadParameter` for what is no month.
    """
    if not _MONTH.fullmatch(month):
        raise BadParameter("month", month, "a month such as 2026-01")
    of_price = (prices.c.input, prices.c.cached_input, prices.c.output)
    wanted = (
        sa.select(ledger.c.model, ledger.c.price_id, *of_price, *_sums())
        .join(prices, prices.c.id == ledger.c.price_id)
        .where(ledger.c.organisation_id == organisation_id, ledger.c.day.like(f"{month}-%"))
        .group_by(ledger.c.model, ledger.c.price_id, *of_price)
        .order_by(ledger.c.model, ledger.c.price_id)
    )
    named = sa.select(organisations.c.name).where(organisations.c.id == organisation_id)
    with store.reading() as connection:
        name = connection.execute(named).scalar()
        rows = [_numbers(row._asdict()) for row in connection.execute(wanted)]
    if name is None:
        raise AccountNotFound("organisation", organisation_id)
    total = sum(row["amount"] for row in rows)
    return {
        "organisation": {"id": organisation_id, "name": name},
        "month": month,
        "status": "open" if month >= day_of(now_us())[:7] else "closed",
        "currency": "USD",
        "lines": [_line(row) for row in rows],
        "free_tokens": sum(_num_tokens(row) - _num_charged(row) for row in rows),
        "total": written(total),
        "payable": str(cents(total)),
    }


def set_price(store: Database, model: str, rates: Sequence[int], effective: str | None = None) -> None:
    """Adds a version of a price: picodollars per token of input, cached input and output. Earlier requests
    keep theirs. Raises `BadParameter` for a moment that has passed."""
    now = now_us()
    at_us = now
    if effective is not None:
        try:
            at_us = parsed_us(effective)
        except ValueError:
            raise BadParameter("effective", effective, "a time such as 2026-01-31T00:00:00") from None
        if at_us < now:
            raise BadParameter("effective", effective, "a time that is still to come")
    fresh, cached, output = rates
    row = {"input": fresh, "cached_input": cached, "output": output}
    with store.writing() as connection:
        connection.execute(prices.insert().values(model=model, effective_at_us=at_us, **row))


def list_prices(store: Database) -> list[dict[str, Any]]:
    """Every version, in dollars per million tokens; of each model the latest last."""
    wanted = sa.select(prices).order_by(prices.c.model, prices.c.effective_at_us)
    names = ("input", "cached_input", "output")
    with store.reading() as connection:
        return [
            {
                "model": row.model,
                "effective_at_us": row.effective_at_us,
                **{name: per_million(getattr(row, name)) for name in names},
            }
            for row in connection.execute(wanted)
        ]


def per_million(picodollars_per_token: int) -> str:
    return written(picodollars_per_token * _MILLION)


def _sums() -> list[sa.ColumnElement[Any]]:
    return [
        sa.func.count().label("requests"),
        *(sa.func.coalesce(sa.func.sum(ledger.c[name]), 0).label(name) for name in _COUNTS),
    ]


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """PostgreSQL sums whole numbers into decimals."""
    return {**row, **{name: int(row[name]) for name in _COUNTS}}


def _num_tokens(row: dict[str, Any]) -> int:
    return int(row["prompt_tokens"] + row["completion_tokens"])


def _num_charged(row: dict[str, Any]) -> int:
    return int(row["charged_input"] + row["charged_cached"] + row["charged_output"])


def _line(row: dict[str, Any]) -> dict[str, Any]:
    parts = (
        ("input", "charged_input", "input"),
        ("cached_input", "charged_cached", "cached_input"),
        ("output", "charged_output", "output"),
    )
    charges = [
        {
            "kind": kind,
            "tokens": row[counted],
            "price_per_million": per_million(row[price]),
            "amount": written(row[counted] * row[price]),
        }
        for kind, counted, price in parts
    ]
    amount = written(row["amount"])
    return {"model": row["model"], "requests": row["requests"], "charges": charges, "amount": amount}
