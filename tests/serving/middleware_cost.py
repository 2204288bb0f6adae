"""CPU time that the service itself adds to a request and to a chunk, on the fake engine.

    PYTHONPATH=src:tests python -m serving.middleware_cost [--postgresql] [--output bench/results/edge.jsonl]

All threads of the service's process are counted, the kernel's work for them too (a ledger's row is on the
disk before its reply ends); the server of PostgreSQL is not. Requests go straight into the application, one
after another or several at once; the share of HTTP itself is uvicorn's.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from accounts import postgres
from serving.fake import MODEL, FakeBackend, fake_service
from vermilion.accounts import database as stores
from vermilion.accounts import organisations
from vermilion.accounts.access_keys import credentials, signing_secret
from vermilion.accounts.gate import Accounts
from vermilion.accounts.keys import Secret
from vermilion.accounts.organisations import NewKey, NewOrganisation
from vermilion.serving.http.app import create_app
from vermilion.types import Event, Request, Sampling

NUM_CHUNKS = 100
NUM_ROUNDS = 15
NUM_CALLS = 16
"""Of one round: the clock of CPU time is read no oftener."""
NUM_WARMING = 400
"""SQLite's log grows to its full size first, and extending a file costs more than writing it again."""

Call = Callable[[], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians over rounds; `spread` is (highest - lowest) over median of the first."""

    request_ms: float
    spread: float
    stream_ms: float
    """Of a stream with one chunk."""
    chunk_us: float
    """Of each further chunk."""
    diffusing_us: float
    """Of each further chunk of `"diffusing": true`."""


def caller(accounts: Accounts | None = None, key: str = "", **fields: object) -> Call:
    """Sends one chat request straight into the application; gives the number of body messages."""
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    return caller_of("/v1/chat/completions", body, accounts, {"authorization": f"Bearer {key}"})


def caller_of(
    path: str, fields: dict[str, Any], accounts: Accounts | None, headers: Mapping[str, str]
) -> Call:
    """The same of any route."""
    app = create_app(fake_service(FakeBackend(words=("word ",) * NUM_CHUNKS), accounts))
    body = json.dumps(fields).encode()
    given = {"content-type": "application/json", **headers}
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
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


async def cpu_s(call: Call, at_once: int = 1) -> list[float]:
    """CPU time of one call, in each of the rounds, after one call to warm up."""
    await call()
    rounds = []
    for _ in range(NUM_ROUNDS):
        begun = time.process_time()
        for _ in range(NUM_CALLS // at_once):
            await asyncio.gather(*(call() for _ in range(at_once)))
        rounds.append((time.process_time() - begun) / NUM_CALLS)
    return rounds


async def engine_cpu_s(num_chunks: int) -> float:
    """The fake engine's own share, event loop included."""
    backend = FakeBackend(words=("word ",) * num_chunks)

    async def call() -> int:
        events: AsyncGenerator[Event, None] = backend.generate(
            Request("x", (1,), Sampling(max_tokens=num_chunks))
        )
        return len([event async for event in events])

    return statistics.median(await cpu_s(call))


async def cost(accounts: Accounts | None = None, key: str = "", at_once: int = 1) -> Cost:
    """Of the service with these accounts, `at_once` requests at a time."""

    async def median_s(**fields: object) -> float:
        return statistics.median(await cpu_s(caller(accounts, key, **fields), at_once))

    if accounts is not None and accounts.store.is_sqlite:
        warming = caller(accounts, key, max_tokens=1)
        for _ in range(NUM_WARMING // at_once):
            await asyncio.gather(*(warming() for _ in range(at_once)))
    plain = await cpu_s(caller(accounts, key, max_tokens=1), at_once)
    engine_s = await engine_cpu_s(NUM_CHUNKS)
    shorts, chunks = [], []
    for kind in ({}, {"diffusing": True}):
        short, long = [await median_s(stream=True, **kind, max_tokens=n) for n in (1, NUM_CHUNKS)]
        shorts.append(short)
        chunks.append((long - short - engine_s) / (NUM_CHUNKS - 1))
    request_s = statistics.median(plain)
    return Cost(
        request_ms=round(request_s * 1e3, 3),
        spread=round((max(plain) - min(plain)) / request_s, 3),
        stream_ms=round(shorts[0] * 1e3, 3),
        chunk_us=round(chunks[0] * 1e6, 1),
        diffusing_us=round(chunks[1] * 1e6, 1),
    )


_CONVERSE = {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}
_INVOKED = {"messages": [{"role": "user", "content": "hi"}]}
CLOUDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "bedrock converse": (f"/model/{MODEL.id}/converse", _CONVERSE, {}),
    "bedrock converse-stream": (f"/model/{MODEL.id}/converse-stream", _CONVERSE, {}),
    "bedrock invoke": (f"/model/{MODEL.id}/invoke", _INVOKED, {}),
    "bedrock invoke stream": (f"/model/{MODEL.id}/invoke-with-response-stream", _INVOKED, {}),
    "sagemaker invocations": ("/invocations", _INVOKED, {}),
    "azure chat": (
        f"/openai/deployments/{MODEL.id}/chat/completions",
        _INVOKED,
        {"extra-parameters": "drop"},
    ),
}
"""Route, body and headers of each protocol of the clouds."""
_ONE_TOKEN = {"inferenceConfig": {"maxTokens": 1}, "max_tokens": 1}


async def cloud_request_ms(
    name: str, accounts: Accounts | None = None, made: Secret | None = None, at_once: int = 1
) -> float:
    """Median CPU time of a request for one token; signed as boto3 does where there is a key."""
    path, body, headers = CLOUDS[name]
    fields = {**body, **_ONE_TOKEN}
    if made is not None:
        headers = {**headers, **_signed(path, fields, made)}
    return statistics.median(await cpu_s(caller_of(path, fields, accounts, headers), at_once)) * 1e3


def _signed(path: str, fields: dict[str, Any], made: Secret) -> dict[str, str]:
    url, host = f"http://localhost{path}", {"host": "localhost"}
    request = AWSRequest("POST", url, headers=host, data=json.dumps(fields).encode())
    pair = credentials(made)
    key = Credentials(pair["AWS_ACCESS_KEY_ID"], pair["AWS_SECRET_ACCESS_KEY"])
    SigV4Auth(key, "bedrock", "us-east-1").add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


@contextmanager
def opened(where: str) -> Iterator[tuple[Accounts, str]]:
    """New accounts, and a key of theirs."""
    store = stores.connect(where)
    stores.migrate(store)
    secret = organisations.create_organisation(store, NewOrganisation("Acme", "a@example.org"))[2]
    accounts = Accounts(store)
    try:
        yield accounts, secret.text
    finally:
        accounts.close()


def cloud_rows(head: dict[str, object], accounts: Accounts) -> Iterator[dict[str, object]]:
    """Of each protocol of the clouds without accounts, and of Bedrock's with a signature to check as well."""
    signing = signing_secret(accounts.store, create=True) if accounts.store.is_sqlite else None
    owner = organisations.list_organisations(accounts.store)[0].id
    for name, at_once in itertools.product(CLOUDS, (1, 8)):
        measured = {"none": asyncio.run(cloud_request_ms(name, at_once=at_once))}
        if signing and name.startswith("bedrock"):
            made = organisations.create_key(accounts.store, owner, NewKey(signing=signing))
            measured["sqlite, signed"] = asyncio.run(cloud_request_ms(name, accounts, made, at_once))
        for kind, request_ms in measured.items():
            load = round(os.getloadavg()[0], 2)
            shared = {"accounts": kind, "at_once": at_once, "rounds": NUM_ROUNDS, "load": load}
            yield {**head, "protocol": name, **shared, "request_ms": round(request_ms, 3)}


def rows(where: str) -> Iterator[dict[str, object]]:
    """Of the service without accounts and with them, one request at a time and several."""
    from vermilion.evaluation.environment import commit, processor

    database = "postgresql" if "://" in where else "sqlite"
    head = {"benchmark": "edge", "date": time.strftime("%Y-%m-%d"), "commit": commit(), "device": processor()}
    with opened(where) as (accounts, key):
        for at_once in (1, 8):
            load = round(os.getloadavg()[0], 2)
            without = asyncio.run(cost(at_once=at_once))
            having = asyncio.run(cost(accounts, key, at_once))
            for name, measured in (("none", without), (database, having)):
                shared = {"accounts": name, "at_once": at_once, "rounds": NUM_ROUNDS, "load": load}
                yield {**head, **shared, **asdict(measured)}
        yield from cloud_rows(head, accounts)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the service adds to a request and to a chunk.")
    parser.add_argument("--postgresql", action="store_true", help="On a PostgreSQL of its own; else SQLite.")
    parser.add_argument("--output", type=Path, help="Where the rows are kept.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        where = stack.enter_context(postgres.server()) if given.postgresql else f"{folder}/accounts.db"
        for row in rows(where):
            print(json.dumps(row))
            if given.output:
                with given.output.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
