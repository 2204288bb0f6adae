"""Sign-up, keys, usage and invoices over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from accounts.conftest import Clock
from serving.fake import MODEL, FakeBackend, fake_service
from vermilion.accounts import access_keys
from vermilion.accounts.accounts_config import AccountsConfig
from vermilion.accounts.clock import day_of
from vermilion.accounts.database import Database
from vermilion.accounts.gate import Accounts
from vermilion.serving.http.app import create_app

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def client(store: Database) -> AsyncIterator[httpx.AsyncClient]:
    accounts = Accounts(store, AccountsConfig(sign_ups_per_hour=2))
    transport = httpx.ASGITransport(create_app(fake_service(FakeBackend(), accounts)))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as opened:
        yield opened
    await asyncio.to_thread(accounts.writer.close)


async def signed_up(client: httpx.AsyncClient, email: str = "Ada@example.org") -> dict[str, Any]:
    reply = await client.post("/v1/accounts", json={"email": email, "organisation": "Acme"})
    assert reply.status_code == 201, reply.text
    client.headers["authorization"] = f"Bearer {reply.json()['key']['secret']}"
    return dict(reply.json())


async def test_whoever_signs_up_can_ask_at_once_and_has_ten_million_tokens(client: httpx.AsyncClient) -> None:
    account = await signed_up(client)
    assert account["free_tokens"] == 10_000_000
    usage = (await client.post(CHAT, json=QUESTION)).json()["usage"]
    state = (await client.get("/v1/accounts")).json()
    assert state["free_tokens"] == 10_000_000 - usage["total_tokens"]
    assert (state["id"], state["plan"]) == (account["organisation"]["id"], "free")
    assert state["limits"]["requests_per_minute"] == 1000


async def test_sign_up_is_once_per_address_and_so_many_an_hour(client: httpx.AsyncClient) -> None:
    await signed_up(client)
    again = await client.post("/v1/accounts", json={"email": "ada@EXAMPLE.org"})
    assert (again.status_code, again.json()["error"]["code"]) == (400, "email_already_registered")
    await signed_up(client, "b@example.org")
    third = await client.post("/v1/accounts", json={"email": "c@example.org"})
    assert third.status_code == 429 and int(third.headers["retry-after"]) > 0


async def test_a_service_may_let_nobody_sign_up(store: Database) -> None:
    accounts = Accounts(store, AccountsConfig(sign_ups_per_hour=0))
    transport = httpx.ASGITransport(create_app(fake_service(FakeBackend(), accounts)))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        reply = await client.post("/v1/accounts", json={"email": "a@example.org"})
    await asyncio.to_thread(accounts.writer.close)
    assert reply.status_code == 403


async def test_a_key_is_made_used_listed_without_its_secret_and_revoked(client: httpx.AsyncClient) -> None:
    await signed_up(client)
    body = {"name": "ci", "scopes": ["generate"], "concurrency": 3, "budget": "1.50"}
    made = await client.post("/keys", json=body)
    assert made.status_code == 201
    secret = made.json().pop("secret")
    own = {"x-api-key": secret, "authorization": ""}
    assert (await client.post(CHAT, json=QUESTION, headers=own)).status_code == 200
    assert (await client.get("/v1/keys", headers=own)).status_code == 403
    listed = await client.get("/v1/keys")
    assert secret not in listed.text
    shown = listed.json()["data"][1]
    assert (shown["name"], shown["scopes"], shown["limits"]["budget"]) == ("ci", ["generate"], "1.5")
    gone = await client.delete(f"/v1/keys/{shown['id']}")
    assert gone.json()["revoked_at"] is not None
    assert (await client.post(CHAT, json=QUESTION, headers=own)).status_code == 401


async def test_a_key_for_amazons_clients_is_made_over_http(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(access_keys.SIGNING_SECRET, "s" * 64)
    await signed_up(client)
    made = await client.post("/v1/keys", json={"name": "boto", "scopes": ["generate"], "aws": True})
    assert made.status_code == 201
    given = made.json()["aws"]
    assert given["AWS_BEARER_TOKEN_BEDROCK"] == made.json()["secret"]
    url = f"http://localhost/model/{MODEL.id}/converse"
    body = json.dumps({"messages": [{"role": "user", "content": [{"text": "hi"}]}]})
    request = AWSRequest("POST", url, {"content-type": "application/json"}, body)
    credentials = Credentials(given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"])
    SigV4Auth(credentials, "bedrock", "us-east-1").add_auth(request)
    reply = await client.post(url, content=body, headers=dict(request.headers))
    assert reply.status_code == 200, reply.text
    plain = await client.post("/v1/keys", json={"name": "plain"})
    assert "aws" not in plain.json()
    monkeypatch.setenv(access_keys.SIGNING_SECRET, "short")
    refused = await client.post("/v1/keys", json={"aws": True})
    assert refused.status_code == 403 and "VERMILION_SIGNING_SECRET" in refused.text


@pytest.mark.parametrize(
    "body",
    [
        {"scopes": ["operate"]},
        {"scopes": []},
        {"scopes": ["root"]},
        {"concurrency": 0},
        {"budget": "-1"},
        {"budget": "much"},
        {"expires_at": "tomorrow"},
        {"expires_at": "9999-12-31T23:59:59-23:59"},
        {"expires_at": "0001-01-01T00:00:00+23:00"},
        {"name": "n" * 201},
        {"name": 7},
        {"name": "a\0b"},
    ],
)
async def test_a_key_that_cannot_be_is_a_400(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    await signed_up(client)
    assert (await client.post("/v1/keys", json=body)).status_code == 400
    assert (await client.get("/v1/keys")).status_code == 200


async def test_texts_that_no_database_keeps_are_the_callers_mistake(client: httpx.AsyncClient) -> None:
    for body in ({"email": "a\0@example.org"}, {"email": "a@example.org", "organisation": "\0"}):
        assert (await client.post("/v1/accounts", json=body)).status_code == 400
    await signed_up(client)
    assert (await client.delete("/v1/keys/a%00b")).status_code == 404
    named = await client.post(CHAT, json=QUESTION, headers={"idempotency-key": "a\x01b"})
    assert named.status_code == 400
    odd = {"authorization": "Bearer vm-a\x01b-c"}
    assert (await client.get("/v1/keys", headers=odd)).status_code == 401


async def test_nobody_sees_or_ends_what_is_anothers(client: httpx.AsyncClient) -> None:
    first = await signed_up(client)
    await client.post(CHAT, json=QUESTION)
    await signed_up(client, "b@example.org")
    assert (await client.delete(f"/v1/keys/{first['key']['id']}")).status_code == 404
    assert len((await client.get("/v1/keys")).json()["data"]) == 1
    assert (await client.get("/v1/usage")).json()["data"] == []
    assert (await client.get("/v1/invoices")).json()["data"] == []


async def test_usage_and_the_invoice_tell_of_what_was_answered(
    clock: Clock, client: httpx.AsyncClient
) -> None:
    await signed_up(client)
    usages = [(await client.post(CHAT, json=QUESTION)).json()["usage"] for _ in range(3)]
    (row,) = (await client.get("/v1/usage")).json()["data"]
    assert (row["requests"], row["model"], row["day"]) == (3, "tiny-diffusion", day_of(clock.now_us))
    assert row["completion_tokens"] == sum(usage["completion_tokens"] for usage in usages)
    (total,) = (await client.get("/v1/usage", params={"group_by": ""})).json()["data"]
    assert total["prompt_tokens"] == row["prompt_tokens"]
    export = await client.get("/v1/usage", params={"format": "csv", "group_by": "model"})
    assert export.headers["content-type"].startswith("text/csv")
    assert export.text.splitlines()[0].startswith("model,requests,prompt_tokens")
    assert export.text.splitlines()[1].startswith("tiny-diffusion,3,")
    (month,) = (await client.get("/v1/invoices")).json()["data"]
    bill = (await client.get(f"/v1/invoices/{month}")).json()
    assert bill["free_tokens"] == sum(usage["total_tokens"] for usage in usages)
    assert (bill["total"], bill["payable"], bill["status"]) == ("0", "0.00", "open")


@pytest.mark.parametrize(
    "path",
    ["/v1/usage?from=x", "/v1/usage?group_by=route", "/v1/usage?format=xml", "/v1/invoices/never"],
)
async def test_odd_questions_are_a_400(client: httpx.AsyncClient, path: str) -> None:
    await signed_up(client)
    assert (await client.get(path)).status_code == 400


async def test_lists_of_models_name_the_price_of_a_token(client: httpx.AsyncClient) -> None:
    await signed_up(client)
    model, *aliases = (await client.get("/v1/models")).json()["data"]
    assert all(alias["pricing"] == model["pricing"] for alias in aliases)
    assert model["pricing"] == {
        "prompt": "0.00000025",
        "completion": "0.000001",
        "input_cache_reads": "0.000000025",
        "input_cache_writes": "0.00000025",
    }
    assert (await client.get(f"/v1/models/{model['id']}")).json() == model


async def test_the_reference_tells_of_these_routes_only_where_there_are_accounts(
    client: httpx.AsyncClient,
) -> None:
    own = {"/v1/accounts", "/v1/keys", "/v1/keys/{id}", "/v1/usage", "/v1/invoices", "/v1/invoices/{month}"}
    assert own <= set((await client.get("/openapi.json")).json()["paths"])
    transport = httpx.ASGITransport(create_app(fake_service()))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as without:
        assert not own & set((await without.get("/openapi.json")).json()["paths"])
        assert (await without.get("/v1/usage")).status_code == 404
