"""Every test of the accounts runs on SQLite and on PostgreSQL, each in a database of its own."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from accounts import postgres
from vermilion.accounts import clock as clocks
from vermilion.accounts import database as stores
from vermilion.accounts import organisations, schema
from vermilion.accounts.database import Database
from vermilion.accounts.organisations import NewOrganisation, Secret

_numbers = itertools.count()
_PATIENCE_S = 60.0
"""How long a test waits for what must come, on however slow a machine."""


class Clock:
    """The accounts' time, which stands still but for what a test lets pass."""

    def __init__(self) -> None:
        self.now_us = clocks.now_us()

    def time_ns(self) -> int:
        return self.now_us * 1000

    def advance(self, seconds: float) -> None:
        self.now_us += int(seconds * clocks.SECOND_US)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(clocks, "time", SimpleNamespace(time_ns=stopped.time_ns))
    return stopped


async def until(true: Callable[[], object]) -> None:
    """Returns once it is true; a test never guesses how long something takes."""
    end_s = time.monotonic() + _PATIENCE_S
    while not true():
        assert time.monotonic() < end_s, "it never came"
        await asyncio.sleep(0.005)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    reason = postgres.reason_against()
    if reason:
        pytest.skip(reason)
    with postgres.server() as address:
        yield address


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Accounts with their tables and nothing in them: copying them is quicker than making them."""
    path = tmp_path_factory.mktemp("template") / "accounts.db"
    migrated(str(path)).close()
    return path


@pytest.fixture(scope="session")
def postgres_accounts(postgres_server: str) -> str:
    create_database(postgres_server, "accounts")
    address = address_of(postgres_server, "accounts")
    migrated(address).close()
    return address


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def empty(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A place for accounts that holds nothing yet."""
    if database == "sqlite":
        return str(tmp_path / "accounts.db")
    server = request.getfixturevalue("postgres_server")
    name = f"accounts_{next(_numbers)}"
    create_database(server, name)
    return address_of(server, name)


@pytest.fixture
def where(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Where accounts are that have their tables."""
    if database == "sqlite":
        path = tmp_path / "accounts.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        return str(path)
    address: str = request.getfixturevalue("postgres_accounts")
    wipe(address)
    return address


@pytest.fixture
def store(where: str) -> Iterator[Database]:
    opened = stores.open_store(where)
    try:
        yield opened
    finally:
        opened.close()


Count = Callable[[str], int]


@pytest.fixture
def count(store: Database) -> Count:
    """Rows of a table."""

    def counted(table: str) -> int:
        with store.reading() as connection:
            return connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one()

    return counted


def migrated(where: str) -> Database:
    opened = stores.connect(where)
    stores.migrate(opened)
    return opened


def address_of(server: str, name: str) -> str:
    return server.replace("/postgres?", f"/{name}?")


def wipe(address: str) -> None:
    """Empties the tables and puts the first price back, past the triggers that forbid it."""
    opened = stores.connect(address)
    with opened.writing() as connection:
        prices = connection.execute(sa.select(schema.prices).where(schema.prices.c.id == 1)).one()
        connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
        names = ", ".join(schema.metadata.tables)
        connection.execute(sa.text(f"TRUNCATE {names} RESTART IDENTITY"))
        connection.execute(schema.prices.insert().values(**{**prices._asdict(), "id": sa.text("DEFAULT")}))
    opened.close()


def create_database(server: str, name: str) -> None:
    engine = sa.create_engine(sa.make_url(server).set(drivername="postgresql+psycopg"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()


@pytest.fixture
def secret(store: Database) -> Secret:
    return organisations.create_organisation(store, NewOrganisation("Acme", "a@example.org"))[2]


@pytest.fixture
def ledger(store: Database) -> Callable[[], list[Any]]:
    def rows() -> list[Any]:
        with store.reading() as connection:
            return list(connection.execute(sa.text("SELECT * FROM ledger ORDER BY id")))

    return rows
