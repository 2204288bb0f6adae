"""The whole service over a socket, accounts and storage on: no request breaks it or any later one."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import schemathesis
from schemathesis import GenerationMode

from serving.fake import MODEL, FakeBackend, fake_service, served
from serving.fuzzing import FEW, MANY, bounded
from serving.http.test_malformed import check_error
from vermilion.accounts import database as stores
from vermilion.accounts.accounts_config import AccountsConfig
from vermilion.accounts.gate import Accounts
from vermilion.serving.backend import Served
from vermilion.serving.http.app import create_app
from vermilion.serving.http.server import serve
from vermilion.serving.serve_config import ServeConfig

KEPT = r"^/v1/(accounts|keys|usage|invoices|files|fine_tuning|batches)"
"""Routes of what is kept; the others are asked with a key only in the exhaustive round."""
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
BATCH = json.dumps({**LINE, "body": {"messages": [{"role": "user", "content": "hi"}]}}).encode()
EXAMPLE = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
MOST_S = 30.0
"""No reply takes longer, on however busy a machine."""


@dataclass
class Place:
    """A running service, a key to it and ids of what lies in it."""

    client: httpx.Client
    ids: list[str] = field(default_factory=list)
    dice: random.Random = field(default_factory=lambda: random.Random(0))
    num_asked: int = 0

    def upload(self, name: str, content: bytes, purpose: str) -> httpx.Response:
        form = {"files": {"file": (name, content)}, "data": {"purpose": purpose}}
        return self.client.post("/v1/files", **form)  # type: ignore[arg-type]

    def check(self, path: str, reply: Any) -> None:
        """A readable answer of the right shape."""
        assert reply.status_code < 500, f"{reply.status_code}: {reply.text[:500]}"
        if reply.status_code >= 400 and reply.status_code != 405:
            check_error(path, json.loads(reply.content))
        self.num_asked += 1


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("kept")
    opened, stop, loops = threading.Event(), asyncio.Event(), []
    urls: list[str] = []

    @asynccontextmanager
    async def load() -> AsyncIterator[Served]:
        yield served(FakeBackend(model=replace(MODEL, context_length=4096)))
        await asyncio.sleep(0)

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await serve(_config(folder), load, stop, lambda url: (urls.append(url), opened.set()))  # type: ignore[func-returns-value]

    store = stores.connect(str(folder / "accounts.db"))
    stores.migrate(store)
    store.close()
    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    opened.wait(60)
    with httpx.Client(base_url=urls[0], timeout=MOST_S) as client:
        while client.get("/ready").status_code != 200:
            pass
        yield _furnished(client)
    loops[0].call_soon_threadsafe(stop.set)
    thread.join(60)
    assert not thread.is_alive()


def _config(folder: Path) -> ServeConfig:
    unlimited = 10**9
    accounts = AccountsConfig(
        str(folder / "accounts.db"), unlimited, unlimited, unlimited, unlimited, concurrency=1000
    )
    return ServeConfig(port=0, data_folder=folder / "data", accounts=accounts, drain_timeout_s=5)


def _furnished(client: httpx.Client) -> Place:
    account = client.post("/v1/accounts", json={"email": "ada@example.org"}).json()
    client.headers["authorization"] = f"Bearer {account['key']['secret']}"
    place = Place(client)
    for number in range(8):
        content, purpose = ((BATCH, "batch"), (EXAMPLE.encode(), "fine-tune"))[number % 2]
        place.ids.append(place.upload("lines.jsonl", content, purpose).json()["id"])
    body = {"endpoint": LINE["url"], "completion_window": "24h"}
    for file in place.ids[:6:2]:
        place.ids.append(client.post("/v1/batches", json={**body, "input_file_id": file}).json()["id"])
    place.ids.append(client.post("/v1/keys", json={"name": "spare"}).json()["id"])
    return place


def ask(case: Any, place: Place) -> None:
    """Half of the ids a case makes up become some that there are; every tenth comes without a key."""
    dice = place.dice
    if "id" in (case.path_parameters or {}) and dice.random() < 0.5:
        case.path_parameters["id"] = dice.choice(place.ids)
    if isinstance(case.body, dict):
        for name in {"input_file_id", "training_file", "validation_file"} & case.body.keys():
            case.body[name] = dice.choice([case.body[name], *place.ids[:8]])
    key = {} if dice.random() < 0.1 else {"authorization": place.client.headers["authorization"]}
    place.check(
        case.operation.path, case.call(base_url=str(place.client.base_url), headers=key, timeout=MOST_S)
    )


# The document needs routes alone, no accounts behind them.
routes = create_app(fake_service(accounts=cast(Accounts, object())))
everything = schemathesis.openapi.from_dict(routes.openapi())
everything.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
kept = everything.include(path_regex=KEPT)


@kept.parametrize()
@bounded(FEW)
def test_no_request_breaks_what_is_kept(case: Any, place: Place) -> None:
    ask(case, place)


@pytest.mark.exhaustive
@everything.parametrize()
@bounded(MANY)
def test_no_request_of_many_breaks_a_service_with_accounts(case: Any, place: Place) -> None:
    ask(case, place)


def test_no_upload_breaks_it_and_it_still_answers(place: Place) -> None:
    dice = random.Random(1)
    pieces = [
        BATCH,
        EXAMPLE.encode(),
        b"\xff\x00",
        b"{",
        b"[]",
        b"\n",
        b"null",
        b'{"custom_id": 7}',
        b" " * 70_000,
    ]
    for _ in range(60):
        content = b"\n".join(dice.choices(pieces, k=dice.randrange(5)))
        name = dice.choice(["a.jsonl", "", "../../etc/x", "\u2603" * 300, "a\r\nb: c"])
        reply = place.upload(name, content, dice.choice(["batch", "fine-tune", "assistants", "", "\u2603"]))
        place.check("/v1/files", reply)
    for raw, kind in (
        (b"", "multipart/form-data"),
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\n', "multipart/form-data; boundary=x"),
        (b"{}", "application/json"),
    ):
        place.check("/v1/files", place.client.post("/v1/files", content=raw, headers={"content-type": kind}))
    talk = {"messages": [{"role": "user", "content": "hi"}]}
    assert place.client.post("/v1/chat/completions", json=talk).json()["usage"]["completion_tokens"] == 4
    assert place.client.get("/v1/usage").status_code == 200
    print(f"{place.num_asked} requests")
