"""An upstream that is killed under load: no request is lost silently, and the ledger has each once."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from serving.remote.test_remote_backend import CHAT, QUESTION, fronting
from serving.remote.upstream_process import upstream_process
from vermilion.accounts import database as stores
from vermilion.accounts import organisations
from vermilion.accounts.gate import Accounts
from vermilion.accounts.organisations import NewOrganisation

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
NUM_CLIENTS = 12
NUM_WORDS = 20
WHOLE = "".join(f"word{number} " for number in range(NUM_WORDS))
NUM_BEFORE, NUM_AFTER = 24, 48
"""Answers before one of two upstreams is killed, and in all."""


def told(reply: httpx.Response) -> tuple[str, str]:
    """(how a stream ended, its text)."""
    if reply.status_code != 200:
        return f"refused {reply.status_code}", ""
    data = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    chunks = [json.loads(line) for line in data]
    failed = any("error" in chunk for chunk in chunks)
    text = "".join(
        choice["delta"].get("content", "") for chunk in chunks for choice in chunk.get("choices", ())
    )
    return ("error event" if failed else "whole"), text


async def test_every_request_is_answered_retried_or_ended_with_an_error(tmp_path: Path) -> None:
    store = stores.connect(str(tmp_path / "accounts.db"))
    stores.migrate(store)
    secret = organisations.create_organisation(store, NewOrganisation("Acme", "a@example.org"))[2]
    accounts = Accounts(store)
    ended: list[tuple[str, str]] = []
    killed = asyncio.Event()

    with upstream_process(NUM_WORDS, 0.01) as first, upstream_process(NUM_WORDS, 0.01) as second:
        async with fronting(first.url, second.url, accounts=accounts) as client:
            client.headers["authorization"] = f"Bearer {secret.text}"

            async def asking() -> None:
                while len(ended) < NUM_AFTER:
                    ended.append(told(await client.post(CHAT, json={**QUESTION, "stream": True})))
                    if len(ended) >= NUM_BEFORE and not killed.is_set():
                        killed.set()
                        # Some have begun by then, some have not.
                        asyncio.get_running_loop().call_later(0.1, first.kill)

            await asyncio.gather(*(asking() for _ in range(NUM_CLIENTS)))
            await asyncio.to_thread(accounts.writer.close)

    counted = Counter(kind for kind, _ in ended)
    print(f"\n{dict(counted)}")
    assert set(counted) <= {"whole", "error event"}
    assert all(text == WHOLE for kind, text in ended if kind == "whole")
    assert all(WHOLE.startswith(text) for _, text in ended)
    # Only what the killed one had begun ends with an error; the other answers the rest.
    assert counted["error event"] <= NUM_CLIENTS
    rows: dict[str, Any]
    with store.reading() as connection:
        asked = sa.text("SELECT outcome, count(*), min(completion_tokens) FROM ledger GROUP BY outcome")
        rows = {outcome: (number, least) for outcome, number, least in connection.execute(asked)}
    assert rows["finished"] == (counted["whole"], NUM_WORDS)
    assert rows.get("failed", (0,))[0] == counted["error event"]
    store.close()
