"""One account in front of the embedded model, from its sign-up to its invoice, to the last digit."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from accounts.conftest import until
from serving.fake import FakeBackend, fake_service
from vermilion import cli
from vermilion.accounts.accounts_config import AccountsConfig
from vermilion.accounts.database import Database
from vermilion.accounts.gate import Accounts
from vermilion.config import EngineConfig
from vermilion.serving.http.app import create_app
from vermilion.serving.http.server import serve
from vermilion.serving.local_models import local_models
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.settings import Settings

pytestmark = [pytest.mark.anyio, pytest.mark.model, pytest.mark.slow]
CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Count from one to a hundred in words."}]
}
LONG = {**QUESTION, "max_tokens": 300, "stream": True, "logprobs": True}
GRANTED = 41
"""Free tokens: used up within the first answer."""
RATES = {"input": Decimal("0.25"), "cached": Decimal("0.025"), "output": Decimal(1)}


@dataclass
class Running:
    client: httpx.AsyncClient
    stop: asyncio.Event


@asynccontextmanager
async def service(where: str, folder: Path) -> AsyncIterator[Running]:
    """The real service on a socket; it does not wait for running answers when it is stopped."""
    accounts = AccountsConfig(url=where, free_tokens=GRANTED)
    config = ServeConfig(port=0, accounts=accounts, drain_timeout_s=0, data_folder=folder)
    load = partial(local_models, Settings(serve=config, engine=EngineConfig(threads=1)))
    opened: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    ended = asyncio.create_task(serve(config, load, stop, opened.set_result))
    async with httpx.AsyncClient(base_url=await opened, timeout=300) as client:
        while (await client.get("/ready")).status_code != 200:
            await asyncio.sleep(0.05)
        try:
            yield Running(client, stop)
        finally:
            stop.set()
            await ended


async def read(client: httpx.AsyncClient, body: dict[str, Any], leave: bool) -> AsyncIterator[int]:
    """Asks for a stream; after each frame how many tokens were read. Leaves after some, or at the end."""
    num_tokens = 0
    async with client.stream("POST", CHAT, json=body) as reply:
        assert reply.status_code == 200
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line.removeprefix("data: ")).get("choices", ()):
                num_tokens += len((choice.get("logprobs") or {}).get("content") or ())
            yield num_tokens
            if leave and num_tokens:
                return


def command(*words: str) -> None:
    """`vermilion accounts ...`"""
    with pytest.raises(SystemExit) as ended:
        cli.main(["accounts", *words])
    assert not ended.value.code


def rows(store: Database) -> list[Any]:
    with store.reading() as connection:
        return list(connection.execute(sa.text("SELECT * FROM ledger ORDER BY id")))


def charged(row: Any, num_free: int) -> Decimal:
    """What a row costs in dollars, token by token: a grant covers cached ones first, the answer last."""
    fresh = row.prompt_tokens - row.cached_tokens
    tokens = ["cached"] * row.cached_tokens + ["input"] * fresh + ["output"] * row.completion_tokens
    return sum((RATES[kind] / 10**6 for kind in tokens[num_free:]), Decimal(0))


async def asked(store: Database, running: Running) -> None:
    """Four requests: whole, streamed, left by their client, cut off by the service."""
    client = running.client
    short = {**QUESTION, "max_tokens": 12}
    told = [(await client.post(CHAT, json=short)).json()["usage"]]
    streamed = await client.post(
        CHAT, json={**short, "stream": True, "stream_options": {"include_usage": True}}
    )
    told.append(json.loads(streamed.text.split("data: ")[-2])["usage"])
    assert [(row.prompt_tokens, row.cached_tokens, row.completion_tokens) for row in rows(store)] == [
        (usage["prompt_tokens"], usage["cached_input_tokens"], usage["completion_tokens"]) for usage in told
    ]
    assert all(usage["completion_tokens"] == 12 for usage in told)
    num_left = [number async for number in read(client, LONG, leave=True)][-1]
    await until(lambda: len(rows(store)) == 3)
    num_cut = 0
    async for number in read(client, LONG, leave=False):
        num_cut = number
        if num_cut:
            running.stop.set()
    await until(lambda: len(rows(store)) == 4)
    left, cut = rows(store)[2:]
    assert left.outcome == "aborted" and 0 < num_left <= left.completion_tokens < 300
    assert cut.outcome == "failed" and 0 < num_cut <= cut.completion_tokens < 300


async def test_what_clients_read_the_ledger_usage_and_the_invoice_agree_to_the_last_digit(
    where: str, store: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with service(where, tmp_path / "home") as running:
        account = (await running.client.post("/v1/accounts", json={"email": "ada@example.org"})).json()
        headers = {"authorization": f"Bearer {account['key']['secret']}"}
        running.client.headers.update(headers)
        id = account["organisation"]["id"]
        command("change", id, "--plan", "paid", "--accounts", where)
        await asked(store, running)
    booked, num_free, exact = rows(store), GRANTED, Decimal(0)
    for row in booked:
        amount = charged(row, num_free)
        assert Decimal(row.amount) / 10**12 == amount
        exact += amount
        num_free = max(0, num_free - row.prompt_tokens - row.completion_tokens)
    assert exact > 0 and num_free == 0
    accounts = Accounts(store)
    transport = httpx.ASGITransport(create_app(fake_service(FakeBackend(), accounts)))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:

        async def get(path: str) -> Any:
            return (await client.get(path)).json()

        span = f"from={booked[0].day}&to={booked[-1].day}"
        (total,) = (await get(f"/v1/usage?{span}&group_by="))["data"]
        by_day = (await get(f"/v1/usage?{span}"))["data"]
        exported = (await client.get(f"/v1/usage?{span}&format=csv")).text
        bills = [await get(f"/v1/invoices/{month}") for month in (await get("/v1/invoices"))["data"]]
        state = await get("/v1/accounts")
    await asyncio.to_thread(accounts.writer.close)
    for name in ("prompt_tokens", "cached_tokens", "completion_tokens"):
        assert total[name] == sum(getattr(row, name) for row in booked)
    assert Decimal(total["amount"]) == sum(Decimal(row["amount"]) for row in by_day) == exact
    assert [*csv.DictReader(io.StringIO(exported))] == [
        {name: str(value) for name, value in row.items()} for row in by_day
    ]
    assert sum(Decimal(bill["total"]) for bill in bills) == exact
    assert sum(bill["free_tokens"] for bill in bills) == GRANTED
    assert state["used_tokens"] == total["prompt_tokens"] + total["completion_tokens"]
    if len(bills) == 1:
        assert Decimal(state["spent_this_month"]) == exact
    days = ("--from", booked[0].day, "--to", booked[-1].day)
    capsys.readouterr()
    command("usage", id, *days, "--format", "json", "--accounts", where)
    assert json.loads(capsys.readouterr().out) == by_day
    command("invoice", id, bills[0]["month"], "--accounts", where)
    assert json.loads(capsys.readouterr().out) == bills[0]
    for row in booked:
        print(row.outcome, row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.amount)
