"""Kills a service with SIGKILL, again and again under load, and holds its ledger to what clients read.

Three kinds of clients ask all the time. Those with an idempotency key ask again until they are answered;
those without ask once; some leave in the middle of a stream. After all kills:

- each usage that a client read is in the ledger, once, with the same numbers;
- each request with an idempotency key has exactly one row, whatever was cut off how often;
- no other request has more than one row, and there is no row of a request that nobody sent;
- the meters say what the ledger sums up to, nothing is left running, and the database is whole.

A request without an idempotency key whose reply was cut off may have its row: that its client read nothing
is something no ledger can know. How many such there were is reported.

    scripts/kill [--kills 200] [--postgresql] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import sqlalchemy as sa

from accounts import postgres
from accounts.service import LEASE_S, NUM_WORDS, Nursery, Process, nursery
from vermilion.accounts import database as stores
from vermilion.accounts import organisations
from vermilion.accounts.database import Database
from vermilion.accounts.organisations import NewOrganisation, Secret

CHAT = "/v1/chat/completions"
STEP_S = 0.002
NUM_CLIENTS = 4
"""Of each kind."""
PATIENCE_S = 60
_PROMPT_FRAME = len("user:\n")
_GONE = (httpx.TransportError, json.JSONDecodeError, KeyError)

Read = tuple[int, int, int]
"""Prompt, cached and completion tokens that a client was told."""


@dataclass
class World:
    """What the clients know. The length of its prompt tells each request from every other."""

    secret: Secret
    lengths: Any = field(default_factory=lambda: itertools.count(10))
    named: dict[int, Read] = field(default_factory=dict)
    """Answered requests with an idempotency key."""
    plain: dict[int, Read] = field(default_factory=dict)
    """Answered requests without."""
    sent: set[int] = field(default_factory=set)
    """Requests without, answered or not."""
    left: set[int] = field(default_factory=set)
    """Streams that were left."""
    tries: int = 0
    url: str = ""
    up: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: bool = False


async def ask(world: World, client: httpx.AsyncClient, length: int, name: str | None, stream: bool) -> Read:
    """One try. Raises one of `_GONE` where the reply does not come to its end."""
    world.tries += 1
    body = {"messages": [{"role": "user", "content": "x" * (length - _PROMPT_FRAME)}], "stream": stream}
    headers = {"authorization": f"Bearer {world.secret.text}", **({"idempotency-key": name} if name else {})}
    body["stream_options"] = {"include_usage": True}
    reply = await client.post(world.url + CHAT, json=body, headers=headers)
    if reply.status_code in (409, 503):
        raise httpx.ReadError("still held by the service before")
    assert reply.status_code == 200, (reply.status_code, reply.text)
    if not stream:
        usage = reply.json()["usage"]
    else:
        frames = reply.text.split("\n\n")
        if "data: [DONE]" not in frames:
            raise httpx.ReadError("cut off")
        usage = json.loads(frames[frames.index("data: [DONE]") - 1].removeprefix("data: "))["usage"]
    return usage["prompt_tokens"], usage["cached_input_tokens"], usage["completion_tokens"]


async def asking_until_answered(world: World, client: httpx.AsyncClient) -> None:
    while not world.stopping:
        length = next(world.lengths)
        while length not in world.named:
            await world.up.wait()
            try:
                world.named[length] = await ask(world, client, length, f"name-{length}", length % 2 == 0)
            except _GONE:
                await asyncio.sleep(0.02)


async def asking_once(world: World, client: httpx.AsyncClient) -> None:
    while not world.stopping:
        await world.up.wait()
        length = next(world.lengths)
        world.sent.add(length)
        try:
            world.plain[length] = await ask(world, client, length, None, length % 2 == 0)
        except _GONE:
            await asyncio.sleep(0.02)


async def leaving(world: World, client: httpx.AsyncClient, chance: random.Random) -> None:
    while not world.stopping:
        await world.up.wait()
        length = next(world.lengths)
        world.left.add(length)
        try:
            async with asyncio.timeout(chance.uniform(0.005, 0.05)):
                await ask(world, client, length, None, True)
        except (*_GONE, TimeoutError):
            await asyncio.sleep(0.02)


async def besiege(world: World, started: Nursery, num_kills: int, seed: int) -> None:
    chance = random.Random(seed)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=20, limits=limits) as client, asyncio.TaskGroup() as clients:
        for number in range(NUM_CLIENTS):
            clients.create_task(asking_until_answered(world, client))
            clients.create_task(asking_once(world, client))
            clients.create_task(leaving(world, client, random.Random(seed + number)))
        for number in range(num_kills + 1):
            process = await asyncio.to_thread(started.start)
            await ready(world, process, client)
            num_answered = len(world.named) + len(world.plain)
            world.up.set()
            await asyncio.sleep(chance.uniform(0.02, 0.6))
            # A service of a slow machine has answered nobody yet.
            while number % 2 and len(world.named) + len(world.plain) == num_answered:
                await asyncio.sleep(0.005)
            if number < num_kills:
                world.up.clear()
                process.kill()
                if sys.stderr.isatty():
                    print(f"\r{number + 1} of {num_kills} kills", end="", file=sys.stderr)
        world.stopping = True


async def ready(world: World, process: Process, client: httpx.AsyncClient) -> None:
    world.url = process.url
    while True:
        try:
            if (await client.get(f"{process.url}/ready")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.005)


def judge(world: World, store: Database) -> dict[str, int]:
    """Asserts what the first lines of this file promise; gives the counts."""
    with store.reading() as connection:
        rows = list(connection.execute(sa.text("SELECT * FROM ledger")))
        if store.is_sqlite:
            assert connection.execute(sa.text("PRAGMA integrity_check")).scalar_one() == "ok"
    per_request = Counter(row.prompt_tokens for row in rows if row.outcome == "finished")
    of = {row.prompt_tokens: row for row in rows if row.outcome == "finished"}
    assert not {n: count for n, count in per_request.items() if count > 1}, "a request was charged twice"
    for length, read in {**world.named, **world.plain}.items():
        row = of.get(length)
        assert row is not None, f"{length}: a client read its usage, and the ledger has no row"
        assert (row.prompt_tokens, row.cached_tokens, row.completion_tokens) == read
        assert read == (length, 4, NUM_WORDS)
    aborted = [row for row in rows if row.outcome != "finished"]
    assert all(row.prompt_tokens in world.left | {0} for row in aborted), "only those who left were cut short"
    known = set(world.named) | world.sent | world.left
    assert set(of) <= known, "the ledger has a request that nobody sent"
    named = [row for row in rows if row.idempotency_key]
    assert len(named) == len(world.named)
    used = sum(row.prompt_tokens + row.completion_tokens for row in rows)
    state = organisations.organisation(store, world.secret.key.organisation_id)
    assert state.used_tokens == used and state.month_spent == sum(row.amount for row in rows)
    return {
        "tries": world.tries,
        "rows": len(rows),
        "answered, with an idempotency key": len(world.named),
        "answered, without": len(world.plain),
        "left by their clients, recorded": sum(row.prompt_tokens in world.left | {0} for row in rows),
        "without, cut off, recorded": len(set(of) & (world.sent - set(world.plain))),
        "without, cut off, not recorded": len(world.sent - set(world.plain) - set(of)),
    }


def settled(store: Database) -> None:
    """Returns when nothing is held as running any more. Raises AssertionError if something stays."""
    end_s = time.monotonic() + PATIENCE_S
    while True:
        with store.reading() as connection:
            held = connection.execute(sa.text("SELECT count(*) FROM admissions")).scalar_one()
        if not held:
            return
        assert time.monotonic() < end_s, f"{held} go on running that nobody runs"
        time.sleep(LEASE_S / 4)


def run(where: str, num_kills: int, seed: int = 1) -> dict[str, int]:
    """The whole check. Raises AssertionError."""
    store = stores.open_store(where)
    new = NewOrganisation("Kill", "kill@example.org", plan="paid", free_tokens=1000)
    world = World(organisations.create_organisation(store, new)[2])
    with nursery(where, STEP_S) as started:
        asyncio.run(besiege(world, started, num_kills, seed))
        # The last service writes what was left of those who went, and drops what its forerunners held.
        settled(store)
    opened = stores.open_store(where)
    try:
        return judge(world, opened)
    finally:
        opened.close()
        store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill a service under load and check its ledger.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--postgresql", action="store_true", help="On a PostgreSQL of its own; else SQLite.")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        where = f"{folder}/accounts.db"
        if given.postgresql:
            where = opened.enter_context(postgres.server())
        store = stores.connect(where)
        stores.migrate(store)
        store.close()
        begun_s = time.monotonic()
        counts = run(where, given.kills, given.seed)
    print(json.dumps({"kills": given.kills, **counts, "seconds": round(time.monotonic() - begun_s)}))


if __name__ == "__main__":
    main()
