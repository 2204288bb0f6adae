from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest

from serving.fake import FakeBackend, fake_service
from vermilion.serving.http.app import create_app

Open = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def open_client(backend: FakeBackend) -> Open:
    """A client of an application around `backend`, without a socket between them."""

    @asynccontextmanager
    async def opened(**settings: object) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(create_app(fake_service(backend, **settings)))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client

    return opened


@pytest.fixture
async def client(open_client: Open) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client() as client:
        yield client
