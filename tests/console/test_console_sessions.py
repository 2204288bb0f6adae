"""Signing in to the console: what its cookie may do, and what it may not."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from console.conftest import Open
from vermilion.accounts import organisations
from vermilion.accounts.gate import Accounts
from vermilion.accounts.organisations import NewKey, Secret
from vermilion.serving.console import console_sessions

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


async def signed_in(client: httpx.AsyncClient, secret: Secret) -> dict[str, Any]:
    """Signs in and sends the session's token from then on, as the page does."""
    reply = await client.post("/console/session", json={"key": secret.text})
    assert reply.status_code == 200, reply.text
    state = dict(reply.json())
    client.headers["x-csrf-token"] = state["csrf"]
    return state


async def test_a_key_is_exchanged_for_a_cookie_that_no_script_can_read(opened: Open, secret: Secret) -> None:
    async with opened() as client:
        reply = await client.post("/console/session", json={"key": f" {secret.text}\n"})
        cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
    assert "Secure" not in cookie
    assert secret.text not in reply.text and secret.text.rpartition("-")[2] not in str(reply.headers)
    assert reply.headers["cache-control"] == "no-store"
    state = reply.json()
    assert (state["key"]["id"], state["organisation"]["name"]) == (secret.key.id, "Acme")


async def test_over_tls_the_cookie_is_sent_over_tls_alone(opened: Open, secret: Secret) -> None:
    async with opened("https://localhost") as client:
        reply = await client.post("/console/session", json={"key": secret.text})
    assert "Secure" in reply.headers["set-cookie"]


async def test_a_session_may_do_what_its_key_may(opened: Open, accounts: Accounts, secret: Secret) -> None:
    narrow = organisations.create_key(accounts.store, secret.key.organisation_id, NewKey("n", {"generate"}))  # type: ignore[arg-type]
    async with opened() as client:
        await signed_in(client, secret)
        assert (await client.post(CHAT, json=QUESTION)).status_code == 200
        assert (await client.get("/v1/accounts")).json()["used_tokens"] > 0
        assert (await client.get("/metrics")).status_code == 403
    async with opened() as client:
        await signed_in(client, narrow)
        assert (await client.post(CHAT, json=QUESTION)).status_code == 200
        assert (await client.get("/v1/accounts")).status_code == 403


@pytest.mark.parametrize("token", [None, "", "guess"])
async def test_the_cookie_alone_permits_nothing(opened: Open, secret: Secret, token: str | None) -> None:
    async with opened() as client:
        await signed_in(client, secret)
        del client.headers["x-csrf-token"]
        headers = {} if token is None else {"x-csrf-token": token}
        for reply in (
            await client.post(CHAT, json=QUESTION, headers=headers),
            await client.get("/v1/keys", headers=headers),
        ):
            assert reply.status_code == 403 and reply.json()["error"]["code"] == "csrf_token_missing"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_pages_of_other_origins_are_refused(opened: Open, secret: Secret, site: str) -> None:
    told = {"sec-fetch-site": site}
    async with opened() as client:
        refused = await client.post("/console/session", json={"key": secret.text}, headers=told)
        assert refused.status_code == 403 and "set-cookie" not in refused.headers
        await signed_in(client, secret)
        assert (await client.get("/v1/keys", headers=told)).status_code == 403
        assert (await client.delete("/console/session", headers=told)).status_code == 403
        assert (await client.get("/v1/keys", headers={"sec-fetch-site": "same-origin"})).status_code == 200


async def test_other_origins_cannot_read_the_token(opened: Open, secret: Secret) -> None:
    """A page of another port of this computer may call the API, but never with the cookie."""
    async with opened() as client:
        await signed_in(client, secret)
        reply = await client.get("/console/session", headers={"origin": "http://localhost:3000"})
        assert "access-control-allow-credentials" not in reply.headers


async def test_a_session_ends_with_its_key_by_signing_out_and_in_time(
    opened: Open, secret: Secret, operator: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as client:
        await signed_in(client, operator)
        assert (await client.delete(f"/v1/keys/{operator.key.id}")).status_code == 200
        await asyncio.sleep(1.1)  # as long as a key is remembered
        assert (await client.get("/v1/keys")).status_code == 401
        assert (await client.get("/console/session")).json()["key"] is None
    async with opened() as client:
        await signed_in(client, secret)
        cookie = client.cookies[console_sessions.COOKIE]
        gone = await client.delete("/console/session")
        assert gone.json()["key"] is None and "Max-Age=0" in gone.headers["set-cookie"]
        again = {"cookie": f"{console_sessions.COOKIE}={cookie}"}
        assert (await client.get("/v1/keys", headers=again)).status_code == 401
    async with opened() as client:
        await signed_in(client, secret)
        now_s = console_sessions.time.monotonic()
        monkeypatch.setattr(
            console_sessions.time, "monotonic", lambda: now_s + console_sessions.LIFETIME_S + 1
        )
        assert (await client.get("/v1/keys")).status_code == 401


async def test_a_key_in_a_header_goes_before_the_cookie(
    opened: Open, secret: Secret, operator: Secret
) -> None:
    async with opened() as client:
        await signed_in(client, secret)
        own = {"authorization": f"Bearer {operator.text}"}
        assert (await client.get("/metrics", headers=own)).status_code == 200
        wrong = {"authorization": "Bearer vm-x-y"}
        assert (await client.get("/v1/keys", headers=wrong)).status_code == 401


async def test_wrong_keys_are_counted_and_then_not_looked_at(opened: Open, secret: Secret) -> None:
    async with opened() as client:
        for _ in range(10):
            reply = await client.post("/console/session", json={"key": "vm-guess-guess"})
            assert reply.status_code == 401
        reply = await client.post("/console/session", json={"key": secret.text})
        assert reply.status_code == 429 and 0 < int(reply.headers["retry-after"]) <= 60


async def test_good_keys_are_not_counted(opened: Open, secret: Secret) -> None:
    async with opened() as client:
        for _ in range(12):
            assert (await client.post("/console/session", json={"key": secret.text})).status_code == 200


async def test_sessions_stay_few() -> None:
    sessions = console_sessions.ConsoleSessions()
    first, _ = sessions.start("first")
    for _ in range(console_sessions._MAX_SESSIONS):
        sessions.start("later")
    assert len(sessions._open) == console_sessions._MAX_SESSIONS
    assert console_sessions._digest(first) not in sessions._open
