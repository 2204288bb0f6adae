"""The statements of every request, compiled once per database and run on the driver's own cursor.

SQLAlchemy writes the SQL; executing through it costs some 80 microseconds of Python per statement, which is
more than the database takes, and a request needs about ten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.engine import Connection

from vermilion.accounts.keys import RateLimits
from vermilion.accounts.meters import Meter
from vermilion.accounts.money import Price
from vermilion.accounts.schema import admissions, keys, ledger, meters, organisations, prices, replies

LIMITS = tuple(field.name for field in fields(RateLimits))
METERS = tuple(field.name for field in fields(Meter))
KEYS = tuple(column.name for column in keys.columns)
SUBJECT_COLUMNS = (*KEYS, "plan", "disabled", *(f"organisation_{name}" for name in LIMITS))
"""Columns of the statement `subjects`, in order."""


class StatementCursor:
    """Runs statements within the transaction that its connection is in."""

    def __init__(self, cursor: Any, dialect: str) -> None:
        self._cursor = cursor
        self._dialect = dialect

    @classmethod
    def of(cls, connection: Connection) -> StatementCursor:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        return cls(raw.cursor(), connection.dialect.name)

    def close(self) -> None:
        """Gives its statements back. Those of SQLite are shared by the cursors of a connection: one that is
        closed later by another thread resets a statement that is running."""
        self._cursor.close()

    def tell(self, text: str) -> None:
        """Of the database itself: how a transaction begins."""
        self._cursor.execute(text)

    def rows(self, name: str, given: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        self._cursor.execute(_text(name, self._dialect), given)
        return list(self._cursor.fetchall())

    def rows_of(self, name: str, wanted: Sequence[str], **given: Any) -> list[tuple[Any, ...]]:
        """Of a statement about any number of names."""
        named = {f"name_{number}": value for number, value in enumerate(wanted)}
        self._cursor.execute(_text(name, self._dialect, len(wanted)), named | given)
        return list(self._cursor.fetchall())

    def change(self, name: str, given: Sequence[Mapping[str, Any]]) -> None:
        """Once for each of `given`."""
        text = _text(name, self._dialect)
        if len(given) == 1:
            self._cursor.execute(text, given[0])
        elif given:
            self._cursor.executemany(text, given)


@cache
def _text(name: str, dialect: str, num_names: int = 0) -> str:
    statement = _STATEMENTS[name](num_names)
    kind = sqlite.dialect(paramstyle="named") if dialect == "sqlite" else psycopg.dialect()  # type: ignore[no-untyped-call]
    return str(statement.compile(dialect=kind))


def _names(num_names: int) -> list[sa.BindParameter[str]]:
    return [sa.bindparam(f"name_{number}", type_=sa.String) for number in range(num_names)]


def _meters(num_names: int) -> sa.Executable:
    return (
        sa.select(*(meters.c[name] for name in METERS))
        .where(meters.c.subject.in_(_names(num_names)))
        .order_by(meters.c.subject)
        .with_for_update()
    )


def _subjects(num_names: int) -> sa.Executable:
    named = [organisations.c[name].label(f"organisation_{name}") for name in LIMITS]
    return (
        sa.select(keys, organisations.c.plan, organisations.c.disabled, *named)
        .join(organisations, organisations.c.id == keys.c.organisation_id)
        .where(keys.c.id.in_(_names(num_names)))
    )


def _running(num_names: int) -> sa.Executable:
    table = admissions.c
    return (
        sa.select(table.key_id, table.organisation_id, sa.func.count())
        .where(table.organisation_id.in_(_names(num_names)))
        .where(table.expires_at_us > sa.bindparam("now_us"))
        .group_by(table.key_id, table.organisation_id)
    )


def _same(table: sa.Table) -> sa.ColumnElement[bool]:
    return sa.and_(
        table.c.organisation_id == sa.bindparam("organisation"),
        table.c.idempotency_key == sa.bindparam("key"),
    )


def _same_running(_: int) -> sa.Executable:
    running = admissions.c.expires_at_us > sa.bindparam("now_us")
    return sa.select(admissions.c.request_id).where(_same(admissions), running)


def _same_answered(_: int) -> sa.Executable:
    kept = sa.and_(
        replies.c.organisation_id == ledger.c.organisation_id,
        replies.c.idempotency_key == ledger.c.idempotency_key,
    )
    columns = (replies.c.body_digest, replies.c.events)
    return sa.select(*columns).select_from(ledger.outerjoin(replies, kept)).where(_same(ledger))


def _price(_: int) -> sa.Executable:
    general = prices.c.model == sa.literal_column("'*'")
    return (
        sa.select(*(prices.c[field.name] for field in fields(Price)))
        .where(sa.or_(prices.c.model == sa.bindparam("model"), general))
        .where(prices.c.effective_at_us <= sa.bindparam("now_us"))
        .order_by(general, prices.c.effective_at_us.desc())
        .limit(sa.literal_column("1"))
        .offset(sa.literal_column("0"))
    )


def _update(_: int) -> sa.Executable:
    new: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in METERS if name != "subject"}
    return meters.update().where(meters.c.subject == sa.bindparam("new_subject")).values(new)


def _expiring(table: sa.Table) -> sa.Executable:
    return table.delete().where(table.c.expires_at_us <= sa.bindparam("now_us"))


def _inserting(table: sa.Table) -> Callable[[int], sa.Executable]:
    named: dict[str, Any] = {
        column.name: sa.bindparam(column.name) for column in table.columns if column.name != "id"
    }
    return lambda _: table.insert().values(named).inline()


_STATEMENTS: dict[str, Callable[[int], Any]] = {
    "meters": _meters,
    "subjects": _subjects,
    "running": _running,
    "same running": _same_running,
    "same answered": _same_answered,
    "price": _price,
    "recorded": lambda _: sa.select(ledger.c.id).where(ledger.c.request_id == sa.bindparam("request_id")),
    "renew": lambda _: (
        admissions.update()
        .where(admissions.c.server == sa.bindparam("of"))
        .values(expires_at_us=sa.bindparam("until_us"))
    ),
    "expire admissions": lambda _: _expiring(admissions),
    "expire replies": lambda _: _expiring(replies),
    "end": lambda _: admissions.delete().where(admissions.c.request_id == sa.bindparam("request_id")),
    "update": _update,
    "admissions": _inserting(admissions),
    "ledger": _inserting(ledger),
    "replies": _inserting(replies),
}
