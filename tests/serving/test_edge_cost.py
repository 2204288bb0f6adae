"""What the service itself adds to a request and to a chunk, measured on the fake engine.

Run with `-s` to see the figures. The limits are wide: a busy machine must not fail the build.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import pytest
from fake import FakeBackend, fake_service

from vermilion.accounts import parties
from vermilion.accounts import store as stores
from vermilion.accounts.gate import Accounts
from vermilion.accounts.parties import NewOrganisation
from vermilion.serving.app import create_app
from vermilion.types import Event, Request, Sampling

pytestmark = pytest.mark.anyio
NUM_CHUNKS = 500
NUM_ROUNDS = 15
NUM_WARMING = 400
REQUEST_LIMIT_S = 5e-3
CHUNK_LIMIT_S = 0.5e-3


def caller(accounts: Accounts | None = None, key: str = "", **fields: object) -> Callable[[], Awaitable[int]]:
    """Sends one chat request straight into the application; gives the number of body messages."""
    app = create_app(fake_service(FakeBackend(words=("word ",) * NUM_CHUNKS), accounts))
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"authorization", f"Bearer {key}".encode())],
    }

    async def call() -> int:
        arriving = [{"type": "http.request", "body": body, "more_body": False}]
        num_messages = 0

        async def receive() -> dict[str, object]:
            return arriving.pop() if arriving else await asyncio.Future()

        async def send(message: dict[str, object]) -> None:
            nonlocal num_messages
            if message["type"] == "http.response.start":
                assert message["status"] == 200
            num_messages += message["type"] == "http.response.body"

        await app(dict(scope), receive, send)
        return num_messages

    return call


async def cpu_s(call: Callable[[], Awaitable[int]]) -> float:
    """Median over rounds of the CPU time of one call, after one to warm up."""
    await call()
    rounds = []
    for _ in range(NUM_ROUNDS):
        begun = time.process_time()
        for _ in range(10):
            await call()
        rounds.append((time.process_time() - begun) / 10)
    return statistics.median(rounds)


async def test_a_request_costs_under_a_millisecond_and_a_chunk_under_a_tenth() -> None:
    one, few = {"max_tokens": 1}, {"max_tokens": NUM_CHUNKS // 5}
    request_s = await cpu_s(caller(**one))
    engine_s = await engine_cpu_s(NUM_CHUNKS // 5)
    print(f"\nJSON reply {request_s * 1e3:.3f} ms a request")
    for name, extra in (("stream", {"stream": True}), ("diffusing", {"diffusing": True})):
        short, long = await cpu_s(caller(**one, **extra)), await cpu_s(caller(**few, **extra))
        chunk_s = (long - short - engine_s) / (NUM_CHUNKS // 5 - 1)
        print(f"{name} {short * 1e3:.3f} ms a request, {chunk_s * 1e6:.1f} us a chunk")
        assert chunk_s < CHUNK_LIMIT_S
        assert short < REQUEST_LIMIT_S
    assert request_s < REQUEST_LIMIT_S


async def test_with_accounts_a_request_costs_under_a_millisecond_too(tmp_path: Path) -> None:
    """Finding the key, admission, the ledger's row on the disk: all threads are counted."""
    store = stores.connect(str(tmp_path / "accounts.db"))
    stores.migrate(store)
    secret = parties.create_organisation(store, NewOrganisation("Acme", "a@example.org"))[2]
    accounts = Accounts(store)
    one, few = {"max_tokens": 1}, {"max_tokens": NUM_CHUNKS // 5}
    engine_s = await engine_cpu_s(NUM_CHUNKS // 5)
    try:
        plain_s = await cpu_s(caller(**one))
        # SQLite's log grows to its full size first, and extending a file costs more than writing it again.
        warming = caller(accounts, secret.text, **one)
        for _ in range(NUM_WARMING):
            await warming()
        request_s = await cpu_s(caller(accounts, secret.text, **one))
        short = await cpu_s(caller(accounts, secret.text, stream=True, **one))
        long = await cpu_s(caller(accounts, secret.text, stream=True, **few))
    finally:
        await asyncio.to_thread(accounts.close)
    chunk_s = (long - short - engine_s) / (NUM_CHUNKS // 5 - 1)
    print(
        f"\nJSON reply {request_s * 1e3:.3f} ms a request, {plain_s * 1e3:.3f} without accounts; "
        f"stream {short * 1e3:.3f} ms, {chunk_s * 1e6:.1f} us a chunk"
    )
    assert request_s < REQUEST_LIMIT_S and short < REQUEST_LIMIT_S
    assert chunk_s < CHUNK_LIMIT_S


async def engine_cpu_s(num_chunks: int) -> float:
    """The fake engine's own share, event loop included."""
    backend = FakeBackend(words=("word ",) * num_chunks)

    async def call() -> int:
        events: AsyncGenerator[Event, None] = backend.generate(
            Request("x", (1,), Sampling(max_tokens=num_chunks))
        )
        return len([event async for event in events])

    return await cpu_s(call)
