"""Two services on one database, and services that are killed: what holds over processes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from accounts import killing
from accounts.conftest import until
from accounts.service import HELD, NUM_WORDS, Process, nursery
from vermilion.accounts import organisations
from vermilion.accounts.database import Database
from vermilion.accounts.keys import RateLimits
from vermilion.accounts.organisations import NewOrganisation

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
NUM_CLIENTS = 8
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
SIZE = len("user:hi\n") + NUM_WORDS
"""Tokens of each request."""


@pytest.fixture
def two(where: str, step_s: float | str) -> Iterator[tuple[Process, Process]]:
    with nursery(where, step_s) as started:
        yield started.start(), started.start()


async def ask(client: httpx.AsyncClient, process: Process, key: str) -> int:
    headers = {"authorization": f"Bearer {key}"}
    reply = await client.post(
        f"{process.url}/v1/chat/completions", json=QUESTION, headers=headers, timeout=30
    )
    return reply.status_code


async def until_ready(client: httpx.AsyncClient, processes: tuple[Process, ...]) -> None:
    for process in processes:
        async with asyncio.timeout(60):
            while (await client.get(f"{process.url}/ready", timeout=30)).status_code != 200:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("step_s", [0.001])
async def test_two_processes_overspend_a_grant_by_no_more_than_what_was_running(
    store: Database, two: tuple[Process, Process]
) -> None:
    """The bound: when the ledger reaches the grant, nobody is admitted any more; those who run may end."""
    granted = 30 * SIZE + 1
    new = NewOrganisation("Acme", "a@example.org", free_tokens=granted)
    organisation_id, _, secret = organisations.create_organisation(store, new)
    statuses: Counter[int] = Counter()

    async def asking(client: httpx.AsyncClient, process: Process) -> None:
        for _ in range(12):
            statuses[await ask(client, process, secret.text)] += 1

    async with httpx.AsyncClient() as client:
        await until_ready(client, two)
        await asyncio.gather(*(asking(client, two[number % 2]) for number in range(NUM_CLIENTS)))
        assert [await ask(client, process, secret.text) for process in two] == [402, 402]
    used = organisations.organisation(store, organisation_id).used_tokens
    assert set(statuses) == {200, 402}
    assert statuses[200] * SIZE == used
    assert granted <= used <= granted + NUM_CLIENTS * SIZE


@pytest.mark.parametrize("step_s", [HELD])
async def test_two_processes_share_the_limit_of_requests_at_once(
    store: Database, two: tuple[Process, Process]
) -> None:
    new = NewOrganisation("Acme", "a@example.org", limits=RateLimits(concurrency=3))
    secret = organisations.create_organisation(store, new)[2]
    async with httpx.AsyncClient() as client:
        await until_ready(client, two)
        asked = [
            asyncio.create_task(ask(client, two[number % 2], secret.text)) for number in range(NUM_CLIENTS)
        ]
        await until(lambda: sum(task.done() for task in asked) == NUM_CLIENTS - 3)
        assert {task.result() for task in asked if task.done()} == {429}
        for process in two:
            process.release()
        assert Counter(await asyncio.gather(*asked)) == {200: 3, 429: NUM_CLIENTS - 3}
        assert await ask(client, two[0], secret.text) == 200


@pytest.mark.parametrize("step_s", [0.0])
async def test_two_processes_share_the_limits_of_a_minute(
    store: Database, two: tuple[Process, Process]
) -> None:
    new = NewOrganisation("Acme", "a@example.org", limits=RateLimits(requests_per_minute=5))
    secret = organisations.create_organisation(store, new)[2]
    async with httpx.AsyncClient() as client:
        await until_ready(client, two)
        begun_s = time.monotonic()
        asked = [ask(client, two[number % 2], secret.text) for number in range(4 * NUM_CLIENTS)]
        passed = Counter(await asyncio.gather(*asked))[200]
        took_s = time.monotonic() - begun_s
    # A slow machine gives the bucket time to leak one every twelve seconds.
    assert 5 <= passed <= 5 + took_s / 12


def test_a_killed_service_leaves_a_ledger_of_what_its_clients_read(where: str) -> None:
    counts = killing.run(where, num_kills=4)
    assert counts["answered, with an idempotency key"] > 0 and counts["answered, without"] > 0


async def test_a_client_that_hangs_up_is_recorded_by_a_real_server(store: Database, where: str) -> None:
    secret = organisations.create_organisation(store, NewOrganisation("Acme", "a@example.org"))[2]

    def rows() -> list[Any]:
        with store.reading() as connection:
            return list(connection.execute(sa.text("SELECT outcome, completion_tokens FROM ledger")))

    with nursery(where, 0.5) as started:
        process = started.start()
        async with httpx.AsyncClient() as client:
            await until_ready(client, (process,))
            body = {**QUESTION, "stream": True}
            headers = {"authorization": f"Bearer {secret.text}"}
            url = f"{process.url}/v1/chat/completions"
            async with client.stream("POST", url, json=body, headers=headers, timeout=30) as reply:
                async for line in reply.aiter_lines():
                    if "word1" in line:
                        break
            await until(rows)
    (row,) = rows()
    # The rest of the answer would have taken seven seconds: a slow machine notices later, none that late.
    assert row.outcome == "aborted" and 2 <= row.completion_tokens < NUM_WORDS
