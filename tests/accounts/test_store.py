"""The tables: made by migrations, equal to what the code says, and never rewritten where money stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import DBAPIError

from vermilion.accounts import database as stores
from vermilion.accounts.database import Database
from vermilion.accounts.schema import APPEND_ONLY, metadata
from vermilion.errors import ConfigError


def test_migrations_make_the_tables_that_the_code_uses(store: Database) -> None:
    with store.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_tables_are_made_once_and_bringing_them_up_to_date_again_changes_nothing(empty: str) -> None:
    opened = stores.connect(empty)
    try:
        for _ in range(2):
            stores.migrate(opened)
        stores.open_store(empty).close()
        with opened.reading() as connection:
            assert connection.execute(sa.text("SELECT count(*) FROM prices")).scalar_one() == 1
    finally:
        opened.close()


def test_keys_of_managers_made_before_the_scope_of_jobs_get_it(empty: str) -> None:
    opened = stores.connect(empty)
    try:
        with opened.writing() as connection:
            settings = stores.migrations()
            settings.attributes["connection"] = connection
            command.upgrade(settings, "a001")
            connection.execute(
                sa.text(f"INSERT INTO organisations {_COLUMNS} VALUES ('o', 'n', 'free', 1, FALSE, FALSE)")
            )
            for scopes in ("generate manage", "generate", "operate"):
                connection.execute(
                    sa.text(
                        "INSERT INTO keys (id, organisation_id, name, digest, scopes, created_at_us) "
                        "VALUES (:scopes, 'o', '', :scopes, :scopes, 1)"
                    ),
                    {"scopes": scopes},
                )
        stores.migrate(opened)
        with opened.reading() as connection:
            found = dict(connection.execute(sa.text("SELECT id, scopes FROM keys")).all())
    finally:
        opened.close()
    assert found == {
        "generate manage": "generate jobs manage",
        "generate": "generate",
        "operate": "operate",
    }


@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.parametrize("change", ["UPDATE {} SET id = id + 1", "DELETE FROM {}"])
def test_what_is_written_about_money_stays(store: Database, count, table: str, change: str) -> None:
    with store.writing() as connection:
        organisation = "INSERT INTO organisations VALUES ('o', 'n', 'free', 1, FALSE, FALSE)"
        connection.execute(sa.text(organisation.replace("VALUES", f"{_COLUMNS} VALUES")))
        connection.execute(
            sa.text("INSERT INTO grants (organisation_id, tokens, reason, at_us) VALUES ('o', 1, '', 1)")
        )
        connection.execute(
            sa.text(
                "INSERT INTO keys (id, organisation_id, name, digest, scopes, created_at_us) "
                "VALUES ('k', 'o', '', '', '', 1)"
            )
        )
        given = "prompt_tokens, cached_tokens, completion_tokens, passes, charged_input, charged_cached"
        more = "charged_output, price_id, amount, started_at_us, settled_at_us"
        columns = f"request_id, organisation_id, key_id, model, route, outcome, day, {given}, {more}"
        connection.execute(
            sa.text(f"INSERT INTO ledger ({columns}) VALUES ('r','o','k','','','','',1,1,1,1,1,1,1,1,1,1,1)")
        )
    before = count(table)
    with pytest.raises(DBAPIError, match="append-only"), store.writing() as connection:
        connection.execute(sa.text(change.format(table)))
    assert count(table) == before > 0


_COLUMNS = "(id, name, plan, created_at_us, signed_up, disabled)"


def test_a_place_without_accounts_says_how_to_make_them(empty: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vermilion accounts init"):
        stores.open_store(empty)
    assert list(tmp_path.iterdir()) == [], "looking must leave nothing behind"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("mysql://localhost/x", "SQLite or PostgreSQL"),
        ("postgresql://nobody:hidden@127.0.0.1:1/x", "cannot be opened"),
        ("/no/such/folder/accounts.db", "cannot be opened"),
    ],
)
def test_a_place_that_cannot_be_is_refused_without_its_password(where: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        stores.connect(where)
    assert "hidden" not in str(refused.value)


def test_accounts_need_neither_torch_nor_the_http_framework() -> None:
    code = (
        "import importlib, pkgutil, sys, vermilion.accounts as package\n"
        "for module in pkgutil.iter_modules(package.__path__):\n"
        "    if module.name != 'migrations': importlib.import_module(f'vermilion.accounts.{module.name}')\n"
        "heavy = {'torch', 'fastapi', 'starlette', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, env={"PYTHONPATH": ":".join(sys.path)}
    )
