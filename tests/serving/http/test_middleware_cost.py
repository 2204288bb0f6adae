"""What the service itself adds to a request and to a chunk, measured on the fake engine.

Run with `-s` to see the figures; bench/results/edge.jsonl has those of a quieter hour. The limits are ten
times what is promised (1 ms a request, 0.1 ms a chunk): a busy machine must not fail the build.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from accounts import postgres
from serving import middleware_cost
from serving.fake import fake_service
from vermilion.accounts.gate import Accounts
from vermilion.serving.http.app import create_app

pytestmark = pytest.mark.anyio
REQUEST_LIMIT_MS = 10.0
CHUNK_LIMIT_US = 1000.0


@contextmanager
def accounts_of(kind: str, folder: Path) -> Iterator[tuple[Accounts | None, str]]:
    with ExitStack() as stack:
        if kind == "none":
            yield None, ""
            return
        where = str(folder / "accounts.db")
        if kind == "postgresql":
            reason = postgres.reason_against()
            if reason:
                pytest.skip(reason)
            where = stack.enter_context(postgres.server())
        yield stack.enter_context(middleware_cost.opened(where))


@pytest.mark.parametrize(("kind", "at_once"), [("none", 1), ("sqlite", 1), ("sqlite", 8), ("postgresql", 8)])
async def test_the_service_adds_little_to_a_request_and_to_a_chunk(
    tmp_path: Path, kind: str, at_once: int
) -> None:
    """With accounts: finding the key, admission, the ledger's row on the disk."""
    with accounts_of(kind, tmp_path) as (accounts, key):
        measured = await middleware_cost.cost(accounts, key, at_once)
    print(f"\naccounts: {kind}, {at_once} at once: {measured}")
    assert max(measured.request_ms, measured.stream_ms) < REQUEST_LIMIT_MS
    assert max(measured.chunk_us, measured.diffusing_us) < CHUNK_LIMIT_US


@pytest.mark.parametrize("name", middleware_cost.CLOUDS)
async def test_the_protocols_of_the_clouds_add_little_too(name: str) -> None:
    request_ms = await middleware_cost.cloud_request_ms(name)
    print(f"\n{name}: {request_ms:.3f} ms")
    assert request_ms < REQUEST_LIMIT_MS


def test_the_router_looks_at_each_route_once() -> None:
    """FastAPI matches the routes of an included router twice, and adds up all their versions each time."""
    paths = [route.path for route in create_app(fake_service()).router.routes]
    assert "/v1/chat/completions" in paths and "/metrics" in paths


async def test_the_measure_counts_work_and_not_waiting() -> None:
    async def waiting() -> int:
        await asyncio.sleep(0.005)
        return 0

    async def working() -> int:
        return sum(range(100_000))

    assert max(await middleware_cost.cpu_s(waiting)) < 0.005
    assert min(await middleware_cost.cpu_s(working)) > 0.0002
