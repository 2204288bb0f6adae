"""The commands of docs/OPERATIONS.md run as they stand, on SQLite and on PostgreSQL, and its backups open."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from accounts import postgres
from serving.fake import FakeBackend, fake_service
from vermilion import cli
from vermilion.accounts import database as stores
from vermilion.accounts import organisations, schema
from vermilion.accounts.database import Database
from vermilion.accounts.gate import Accounts
from vermilion.accounts.transactions import LedgerRequest, Settlement
from vermilion.accounts.writer import Writer
from vermilion.cli import launch
from vermilion.serving.http.app import create_app
from vermilion.types import Usage

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
OPEN, CLOSED = PAGE.split("With accounts they need a key")
FILE, ADDRESS = "accounts.db", "postgresql:///accounts"
OTHERS = {"sqlite": ("createdb", "pg_", "postgresql:"), "postgresql": ("sqlite3", "copy.db")}
"""Words of commands that are about the other database."""
NEEDED = {"sqlite": ("sqlite3",), "postgresql": ("createdb", "pg_dump", "pg_restore")}


def blocks(page: str) -> list[tuple[list[str], list[str]]]:
    """(commands, what they print) of a part of the page."""
    found = re.findall(r"```sh\n(.+?)```(?:\n```text\n(.+?)```)?", page, re.DOTALL)
    return [(commands.splitlines(), printed.splitlines()) for commands, printed in found]


class Terminal:
    """Where the page is typed in, in a folder of its own."""

    def __init__(
        self, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.where = FILE if kind == "sqlite" else ADDRESS
        self.names = {"ORG": "", "KEY": "", "SECRET": ""}
        self.served: list[launch.Settings] = []
        self._kind, self._capsys, self._patch = kind, capsys, monkeypatch
        monkeypatch.setattr(
            launch, "serve", lambda options, _: self.served.append(launch.settings_of(options))
        )

    async def type(self, line: str, with_accounts: bool) -> str:
        """What a command prints; nothing for one about the other database."""
        if any(word in line for word in OTHERS[self._kind]):
            return ""
        words = [self._meant(word) for word in shlex.split(line, comments=True)]
        if words[0] == "export":
            self._patch.setenv(*words[1].split("="))
            return ""
        if words[0] == "vermilion":
            return self._vermilion(words[1:])
        if words[0] == "curl":
            return await self._curl(words[1:], with_accounts)
        return subprocess.run(words, check=True, timeout=60, capture_output=True, text=True).stdout

    def _meant(self, word: str) -> str:
        for name, value in self.names.items():
            word = re.sub(rf"\b{name}\b", value, word)
        return word.replace(FILE, self.where)

    def _vermilion(self, words: list[str]) -> str:
        self._capsys.readouterr()
        if words[0] == "serve":
            # `--open` and accounts from the environment do not go together.
            self._patch.delenv("VERMILION_ACCOUNTS", raising=False)
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert not ended.value.code, words
        printed = self._capsys.readouterr().out
        if words[:2] == ["accounts", "create"]:
            self.names["ORG"] = json.loads(self._vermilion(["accounts", "list", "--json"]))[0]["id"]
        if words[:3] == ["accounts", "keys", "create"]:
            self.names |= {"SECRET": printed.strip(), "KEY": printed.split("-")[1]}
        return printed

    async def _curl(self, words: list[str], with_accounts: bool) -> str:
        header = dict([words[2].split(": ")]) if words[1:2] == ["-H"] else {}
        accounts = self.accounts if with_accounts else None
        transport = httpx.ASGITransport(create_app(fake_service(FakeBackend(), accounts)))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            if with_accounts:
                assert (await client.get("/metrics")).status_code == 401
            else:
                await client.post(
                    "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]}
                )
            path = words[0].removeprefix("localhost:8000")
            return (await client.get(path, headers=header)).text

    accounts: Accounts


@pytest.fixture
def terminal(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Terminal]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VERMILION_ACCOUNTS", raising=False)
    if database == "postgresql" and postgres.reason_against():
        pytest.skip(str(postgres.reason_against()))
    if database == "postgresql":
        monkeypatch.setenv("PATH", str(postgres.programs()), prepend=os.pathsep)
    missing = [name for name in NEEDED[database] if not shutil.which(name)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if database == "sqlite":
        yield Terminal(database, capsys, monkeypatch)
        return
    with postgres.server() as address:
        monkeypatch.setenv("PGHOST", address.partition("host=")[2])
        monkeypatch.setenv("PGUSER", "vermilion")
        subprocess.run(["createdb", "accounts"], check=True, timeout=60)
        yield Terminal(database, capsys, monkeypatch)


async def answered(store: Database, organisation_id: str, num: int) -> None:
    """Some requests of the organisation's first key."""
    key = organisations.list_keys(store, organisation_id)[0]
    writer = Writer(store, "one")
    for _ in range(num):
        with store.reading() as connection:
            number = connection.execute(sa.text("SELECT count(*) FROM ledger")).scalar_one()
        request = LedgerRequest(f"req-{number}", key.id, key.organisation_id, "/v1/x", 10)
        await writer.admit(request)
        await writer.settle(Settlement(request, "m", "finished", Usage(10, 4, 20, 5)))
    await asyncio.to_thread(writer.close)


def contents(store: Database) -> dict[str, list[Any]]:
    with store.reading() as connection:
        return {
            name: sorted(map(repr, connection.execute(sa.select(table)))) for name, table in TABLES.items()
        }


TABLES = schema.metadata.tables


async def test_every_command_of_the_page_does_what_it_says(terminal: Terminal, database: str) -> None:
    store: Database | None = None
    for part, with_accounts in ((OPEN, False), (CLOSED, True)):
        for commands, documented in blocks(part):
            printed = ""
            for line in commands:
                if line.startswith("vermilion accounts usage") and store is None:
                    store = stores.open_store(terminal.where)
                    terminal.accounts = Accounts(store)
                    await answered(store, terminal.names["ORG"], 5)
                printed = await terminal.type(line, with_accounts)
            names = [line.rpartition(" ")[0] for line in printed.splitlines()]
            assert all(line.rpartition(" ")[0] in names for line in documented), printed
    assert store is not None
    with_keys, without, in_front = terminal.served
    assert len(in_front.upstream.bases) == 2
    assert (with_keys.serve.accounts.url, with_keys.serve.open) == (terminal.where, False)
    assert (without.serve.accounts.url, without.serve.open) == ("", True)
    state = organisations.organisation(store, terminal.names["ORG"])
    assert (state.plan, state.disabled, state.limits.concurrency, state.limits.budget) == (
        "paid",
        False,
        8,
        None,
    )
    restored = stores.open_store("copy.db" if database == "sqlite" else "postgresql:///copy")
    try:
        saved, now = contents(restored), contents(store)
        # The key for the scraper came after the backup.
        assert {name: rows for name, rows in saved.items() if name not in ("keys", "meters")} == {
            name: rows for name, rows in now.items() if name not in ("keys", "meters")
        }
        assert len(saved["ledger"]) == 5
        await answered(restored, terminal.names["ORG"], 2)
        assert len(contents(restored)["ledger"]) == 7
        with pytest.raises(DBAPIError, match="append-only"), restored.writing() as connection:
            connection.execute(sa.text("DELETE FROM ledger"))
    finally:
        restored.close()
        await asyncio.to_thread(terminal.accounts.close)
