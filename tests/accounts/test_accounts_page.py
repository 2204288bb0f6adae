"""The examples of docs/ACCOUNTS.md run in order, and the replies beside them are the real ones."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from accounts.conftest import Clock
from serving.fake import MODEL, FakeBackend, fake_service
from vermilion.accounts import organisations
from vermilion.accounts.accounts_config import AccountsConfig
from vermilion.accounts.clock import parsed_us
from vermilion.accounts.database import Database
from vermilion.accounts.gate import Accounts
from vermilion.serving.http.app import create_app

pytestmark = pytest.mark.anyio
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "ACCOUNTS.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```sh\n(.+?)```\n```(json|text)\n(.*?)```", PAGE, re.DOTALL)
REFUSAL = json.loads(re.findall(r"```json error\n(.+?)```", PAGE, re.DOTALL)[0])
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
RANDOM = re.compile(r"vm-[a-z0-9]{12}(-[\w.-]+)?|(org|user)_[a-z0-9]{12}|\b[a-z0-9]{12}\b")
"""Ids and secrets, which differ each time."""


def plain(text: str) -> str:
    return RANDOM.sub("RANDOM", text)


async def ask(client: httpx.AsyncClient, command: str, names: dict[str, str]) -> httpx.Response:
    """What curl would ask."""
    words = [re.sub(r"\b(KEY|ID)\b", lambda name: names[name[1]], word) for word in shlex.split(command)]
    assert words.pop(0) == "curl"
    method, headers, body = "GET", {}, None
    while words:
        word = words.pop(0)
        if word == "-X":
            method = words.pop(0)
        elif word == "-H":
            headers = dict([words.pop(0).split(": ")])
        elif word == "--json":
            method, body = "POST", json.loads(words.pop(0))
        else:
            url = word.removeprefix("localhost:8000")
    return await client.request(method, url, headers=headers, json=body)


async def test_the_examples_give_what_the_page_says(store: Database, clock: Clock) -> None:
    clock.now_us = parsed_us("2026-11-25T12:00:00")
    backend = FakeBackend(model=replace(MODEL, id="smollm2-135m-diffusion"))
    accounts = Accounts(store, AccountsConfig())
    names: dict[str, str] = {}
    transport = httpx.ASGITransport(create_app(fake_service(backend, accounts)))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for command, kind, documented in EXAMPLES:
            reply = await ask(client, command, names)
            clock.advance(60)
            assert reply.status_code in (200, 201), reply.text
            if kind == "json":
                print(json.dumps(reply.json(), indent=2))
                assert plain(json.dumps(reply.json())) == plain(json.dumps(json.loads(documented)))
            else:
                print(reply.text)
                assert plain(reply.text.replace("\r\n", "\n")) == plain(documented)
            if not names:
                account = reply.json()
                names["KEY"] = account["key"]["secret"]
                key = {"authorization": f"Bearer {names['KEY']}"}
                organisations.change_organisation(store, account["organisation"]["id"], plan="paid")
                assert (
                    await client.post("/v1/chat/completions", json=QUESTION, headers=key)
                ).status_code == 200
            elif "secret" in reply.text:
                names["ID"] = reply.json()["id"]
        spent = organisations.NewOrganisation("Spent", "spent@example.org", free_tokens=0)
        other = {"authorization": f"Bearer {organisations.create_organisation(store, spent)[2].text}"}
        refused = await client.post("/v1/chat/completions", json=QUESTION, headers=other)
    await asyncio.to_thread(accounts.writer.close)
    assert (refused.status_code, refused.json()) == (402, REFUSAL)


async def test_every_route_of_accounts_has_an_example(store: Database) -> None:
    def routes(accounts: Accounts | None) -> set[str]:
        paths = create_app(fake_service(FakeBackend(), accounts)).openapi()["paths"]
        return {path for path, methods in paths.items() for _ in methods}

    accounts = Accounts(store)
    own = routes(accounts) - routes(None)
    await asyncio.to_thread(accounts.writer.close)
    shown = {re.sub(r"localhost:8000|\?.*", "", url) for url in re.findall(r"localhost:8000[^\s']+", PAGE)}
    assert own == {path.replace("/ID", "/{id}").replace("/2026-11", "/{month}") for path in shown}
