"""A service with accounts on the fake engine, as the console finds it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from serving.fake import FakeBackend, fake_service
from vermilion.accounts import database as stores
from vermilion.accounts import organisations
from vermilion.accounts.accounts_config import AccountsConfig
from vermilion.accounts.gate import Accounts
from vermilion.accounts.organisations import NewKey, NewOrganisation, Secret
from vermilion.serving.http.app import create_app

Open = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Accounts with their tables and nothing in them: copying them is quicker than making them."""
    path = tmp_path_factory.mktemp("template") / "accounts.db"
    store = stores.connect(str(path))
    stores.migrate(store)
    store.close()
    return path


@pytest.fixture
async def accounts(tmp_path: Path, template: Path) -> AsyncIterator[Accounts]:
    path = shutil.copy(template, tmp_path / "accounts.db")
    opened = Accounts(stores.open_store(str(path)), AccountsConfig())
    yield opened
    await asyncio.to_thread(opened.close)


@pytest.fixture
def secret(accounts: Accounts) -> Secret:
    new = NewOrganisation("Acme", "ada@example.org", free_tokens=1000)
    return organisations.create_organisation(accounts.store, new)[2]


@pytest.fixture
def operator(accounts: Accounts, secret: Secret) -> Secret:
    scopes = frozenset(("generate", "jobs", "manage", "operate"))
    return organisations.create_key(accounts.store, secret.key.organisation_id, NewKey("ops", scopes))


@pytest.fixture
def opened(accounts: Accounts) -> Open:
    """Clients of one service; each keeps its own cookies."""
    app = create_app(fake_service(FakeBackend(), accounts))

    @asynccontextmanager
    async def client(url: str = "http://localhost") -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=url) as one:
            yield one

    return client
