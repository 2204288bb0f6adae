"""The database: SQLite in one file, or PostgreSQL by its address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from vermilion.errors import ConfigError

_BUSY_S = 30
_CONNECT_S = 5
"""How long PostgreSQL may take to answer, unless its address says otherwise (`?connect_timeout=`)."""
_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x7665726D
"""PostgreSQL's advisory lock, under which one process at a time brings the tables up to date."""
_READS = "vermilion_reads"


class Database:
    """Connections to one database, and its transactions."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def name(self) -> str:
        """Where it is, without a password."""
        url = self.engine.url
        return str(url.database) if self.is_sqlite else url.render_as_string(hide_password=True)

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is alone in writing on SQLite, and durable once it has ended."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of everything and waits for nobody."""
        level: dict[str, Any] = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        with self.engine.connect().execution_options(**{_READS: True}, **level) as connection:
            yield connection

    def close(self) -> None:
        self.engine.dispose()


def connect(where: str) -> Database:
    """A store whose tables may not exist yet. `where` is a file, or an address as postgresql://host/name.

    Raises `ConfigError` for what is neither, or cannot be reached.
    """
    url = _url(where)
    is_sqlite = url.get_backend_name() == "sqlite"
    waiting = {"connect_timeout": url.query.get("connect_timeout", _CONNECT_S)}
    try:
        # What stands in the tables has no place in a log.
        engine = sa.create_engine(
            url, hide_parameters=True, pool_pre_ping=not is_sqlite, connect_args={} if is_sqlite else waiting
        )
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is missing; run: pip install 'vermilion[postgres]'") from None
    if is_sqlite:
        _prepare_sqlite(engine)
    try:
        with engine.connect():
            pass
    except SQLAlchemyError as error:
        engine.dispose()
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise ConfigError(f"accounts: {_shown(url)} cannot be opened: {reason}.") from None
    return Database(engine)


def open_store(where: str) -> Database:
    """A store whose tables are those of this release. Raises `ConfigError`."""
    url = _url(where)
    missing = url.get_backend_name() == "sqlite" and not Path(url.database or "").exists()
    if not missing:
        store = connect(where)
        if _revision(store) == _head():
            return store
        store.close()
    raise ConfigError(
        f"accounts: {_shown(url)} has no accounts of this release. Run: vermilion accounts init --accounts "
        f"{where if url.password is None else 'URL'}"
    )


def migrate(store: Database) -> None:
    """Makes the tables, or brings those of an earlier release up to date. Raises `ConfigError`."""
    from alembic import command
    from alembic.util import CommandError

    with store.writing() as connection:
        if not store.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        settings = migrations()
        settings.attributes["connection"] = connection
        try:
            command.upgrade(settings, "head")
        except CommandError as error:
            raise ConfigError(f"accounts: {store.name} was made by another release: {error}.") from None


def migrations() -> Any:
    """Alembic's settings for them."""
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", str(_MIGRATIONS))
    return settings


def _head() -> str | None:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(migrations()).get_current_head()


def _revision(store: Database) -> str | None:
    from alembic.migration import MigrationContext

    with store.reading() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def _url(where: str) -> sa.URL:
    if "://" not in where:
        return sa.URL.create("sqlite+pysqlite", database=str(Path(where).expanduser()))
    try:
        url = sa.make_url(where)
    except ArgumentError:
        raise ConfigError("accounts: neither a file nor an address as postgresql://host/name.") from None
    if url.get_backend_name() == "sqlite":
        return url.set(drivername="sqlite+pysqlite")
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ConfigError(f"accounts: {url.drivername} is not supported; take SQLite or PostgreSQL.")
    return url.set(drivername="postgresql+psycopg")


def _shown(url: sa.URL) -> str:
    return url.render_as_string(hide_password=True) if url.host else str(url.database)


def _prepare_sqlite(engine: Engine) -> None:
    """Write-ahead logging; explicit transactions, since the driver's own begin too late to be exclusive."""

    @sa.event.listens_for(engine, "connect")
    def opened(connection: Any, record: ConnectionPoolEntry) -> None:
        connection.isolation_level = None
        for setting in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            f"busy_timeout = {_BUSY_S * 1000}",
        ):
            connection.execute(f"PRAGMA {setting}").close()

    @sa.event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        reads = connection.get_execution_options().get(_READS)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
