"""The service on a Ray cluster of this machine: two engines, killed and replaced under load."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from ray_serve.cluster import NUM_WORDS, OTHER, WORDS, Cluster, started
from vermilion.accounts import database as stores
from vermilion.accounts import organisations
from vermilion.accounts.database import Database
from vermilion.accounts.organisations import NewOrganisation

pytestmark = [pytest.mark.anyio, pytest.mark.ray]
CHAT = "/v1/chat/completions"
REST = "".join(WORDS)
NUM_CLIENTS = 12


def prepared(folder: Path) -> str:
    """Accounts and an adapter in `folder`; gives a key."""
    (folder / "legal").mkdir()
    (folder / "legal" / "adapter_config.json").write_text("{}")
    store = stores.connect(str(folder / "accounts.db"))
    stores.migrate(store)
    secret = organisations.create_organisation(store, NewOrganisation("Acme", "a@example.org"))[2]
    store.close()
    return secret.text


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("ray")
    (folder / "key").write_text(prepared(folder))
    with started(folder) as cluster:
        yield cluster


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {(cluster.folder / 'key').read_text()}"}
    async with httpx.AsyncClient(base_url=cluster.url, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture
def store(cluster: Cluster) -> Iterator[Database]:
    store = stores.connect(str(cluster.folder / "accounts.db"))
    yield store
    store.close()


def body(text: str, **settings: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **settings}


async def ask(client: httpx.AsyncClient, text: str, **settings: object) -> tuple[str, str]:
    """(which process has answered, how the answer ended)."""
    reply = await client.post(CHAT, json=body(text, stream=True, **settings))
    if reply.status_code != 200:
        return "", f"refused {reply.status_code} {reply.text}"
    data = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    chunks = [json.loads(line) for line in data]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    process, _, rest = "".join(each["delta"].get("content", "") for each in choices).partition(" ")
    if any("error" in chunk for chunk in chunks):
        assert REST.startswith(rest)
        return process, "error event"
    assert rest == REST
    return process, "whole"


def ledger(store: Database) -> Counter[str]:
    """How many rows ended how."""
    with store.reading() as connection:
        rows = connection.execute(sa.text("SELECT outcome, count(*) FROM ledger GROUP BY outcome"))
        return Counter({outcome: number for outcome, number in rows})


async def until(seen: Callable[[], bool]) -> None:
    for _ in range(200):
        if seen():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not happen")


async def test_text_streams_through_and_a_client_that_leaves_stops_its_engine(
    cluster: Cluster, client: httpx.AsyncClient, store: Database
) -> None:
    before, num_cancelled = ledger(store), cluster.cancelled()
    async with client.stream("POST", CHAT, json=body("Hi", stream=True)) as reply:
        async for line in reply.aiter_lines():
            if "word3" in line:
                break
    await until(lambda: cluster.cancelled() > num_cancelled)
    await until(lambda: ledger(store)["aborted"] > before["aborted"])
    with store.reading() as connection:
        asked = sa.text("SELECT completion_tokens FROM ledger WHERE outcome = 'aborted'")
        tokens = connection.execute(asked).scalars().all()
    assert 4 <= tokens[-1] < NUM_WORDS


async def test_a_refusal_of_the_engine_reads_as_one_of_its_own(client: httpx.AsyncClient) -> None:
    reply = await client.post(CHAT, json=body("Hi", model="absent"))
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
    reply = await client.post("/v1/adapters/load", json={"name": "none", "path": "absent"})
    assert reply.status_code in (400, 403, 404)


async def test_the_same_beginning_goes_to_the_same_engine_and_others_spread(
    client: httpx.AsyncClient,
) -> None:
    long = "x" * 200
    first, _ = await ask(client, f"{long}, and first")
    assert {await ask(client, f"{long}, and {number}") for number in range(6)} == {(first, "whole")}
    spread = await asyncio.gather(*(ask(client, f"{number} " * 50) for number in range(12)))
    assert len({process for process, _ in spread}) == 2
    first, ended = await ask(client, "Hi", model="legal")
    assert ended == "whole"
    assert {await ask(client, f"Hi {number}", model="legal") for number in range(6)} == {(first, "whole")}


async def test_engines_of_a_further_model_come_with_its_requests(client: httpx.AsyncClient) -> None:
    processes: set[str] = set()

    async def asking() -> None:
        while len(processes) < 2:
            process, ended = await ask(client, "Hi", model=OTHER)
            assert ended == "whole"
            processes.add(process)

    async with asyncio.timeout(60):
        await asyncio.gather(*(asking() for _ in range(10)))
    default, _ = await ask(client, "Hi")
    assert default not in processes


async def under_load(client: httpx.AsyncClient, disturb: Callable[[], Awaitable[None]]) -> Counter[str]:
    """How answers ended while `disturb` ran, and some before and after it."""
    ended: Counter[str] = Counter()
    over = asyncio.Event()

    async def asking(name: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            ended[(await ask(client, f"{name} {number}"))[1]] += 1

    async with asyncio.TaskGroup() as clients:
        for name in range(NUM_CLIENTS):
            clients.create_task(asking(name))
        await asyncio.sleep(0.5)
        await disturb()
        await asyncio.sleep(0.5)
        over.set()
    print(f"\n{dict(ended)}")
    return ended


async def test_every_request_of_a_killed_engine_is_answered_or_ends_with_an_error(
    cluster: Cluster, client: httpx.AsyncClient, store: Database
) -> None:
    before = ledger(store)

    async def kill() -> None:
        cluster.engines()[0].kill()
        await until(lambda: len(cluster.engines()) == 2)

    ended = await under_load(client, kill)
    assert set(ended) <= {"whole", "error event"}
    # Only what the killed one had begun.
    assert ended["error event"] <= NUM_CLIENTS
    added = ledger(store) - before
    assert added["finished"] == ended["whole"] and added["failed"] == ended["error event"]


async def test_an_http_process_that_dies_is_replaced_and_its_clients_hear_of_it(
    cluster: Cluster, client: httpx.AsyncClient, store: Database
) -> None:
    before, ended = ledger(store), Counter[str]()

    async def asking(name: int) -> None:
        try:
            ended[(await ask(client, f"{name}"))[1]] += 1
        except (httpx.TransportError, AssertionError):
            ended["cut off"] += 1

    async with asyncio.TaskGroup() as clients:
        for name in range(NUM_CLIENTS):
            clients.create_task(asking(name))
        await asyncio.sleep(0.1)
        cluster.ingresses()[0].kill()
    while (await ask(client, "Hi"))[1] != "whole":
        await asyncio.sleep(0.1)
    print(f"\n{dict(ended)}")
    assert ended.total() == NUM_CLIENTS and ended["whole"] < NUM_CLIENTS
    added = ledger(store) - before
    assert ended["whole"] < added["finished"] <= NUM_CLIENTS + 1


async def test_no_request_is_refused_while_every_process_is_replaced(
    cluster: Cluster, client: httpx.AsyncClient, store: Database
) -> None:
    before, old = ledger(store), {process.pid for process in cluster.engines()}

    async def redeploy() -> None:
        await asyncio.to_thread(cluster.redeploy)

    ended = await under_load(client, redeploy)
    assert set(ended) == {"whole"}
    assert not old & {process.pid for process in cluster.engines()}
    assert (ledger(store) - before) == Counter(finished=ended["whole"])
