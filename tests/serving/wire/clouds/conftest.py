"""One service over a socket for the clouds' clients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from serving.fake import MODEL, FakeBackend
from serving.threaded import threaded


@pytest.fixture(scope="package")
def served() -> Iterator[tuple[FakeBackend, str]]:
    with threaded(backend := FakeBackend()) as url:
        while httpx.get(f"{url}/ready").status_code != httpx.codes.OK:
            pass
        yield backend, url


@pytest.fixture
def backend(served: tuple[FakeBackend, str]) -> FakeBackend:
    """As new."""
    served[0].__init__(model=replace(MODEL, context_length=4096))  # type: ignore[misc]
    return served[0]


@pytest.fixture
def url(served: tuple[FakeBackend, str], backend: FakeBackend) -> str:
    return served[1]
