"""The service with accounts: who may ask, in which shape refusals come, and what the ledger says then."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from accounts.conftest import Clock, until
from serving.fake import FakeBackend, fake_service, sse
from vermilion.accounts import organisations
from vermilion.accounts.clock import now_us
from vermilion.accounts.database import Database
from vermilion.accounts.gate import Accounts
from vermilion.accounts.keys import RateLimits
from vermilion.accounts.organisations import NewKey, NewOrganisation, Secret
from vermilion.errors import EngineFailure
from vermilion.serving.admin import account_routes
from vermilion.serving.http.app import ROUTES, create_app
from vermilion.serving.http.routes import RouteTable
from vermilion.types import Finish, Usage

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
PROMPT_TOKENS = len("user:hi\n")
"""The fake tokenizer makes a token of every letter, of which four are found in the cache."""


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


Open = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def opened(store: Database, backend: FakeBackend) -> Open:
    """A client of a service with accounts; `settle` of the fixture `ledger` shows what it wrote."""

    @asynccontextmanager
    async def opening(token: str | None = None, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
        accounts = Accounts(store)
        transport = httpx.ASGITransport(create_app(fake_service(backend, accounts, **settings)))
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost", headers=headers
            ) as client:
                yield client
        finally:
            await asyncio.to_thread(accounts.writer.close)

    return opening


@pytest.mark.parametrize(
    "header",
    [("authorization", "Bearer {}"), ("authorization", "bearer  {}"), ("x-api-key", "{}"), ("api-key", "{}")],
)
async def test_a_key_is_taken_from_the_header_of_each_kind_of_client(
    opened: Open, secret: Secret, header: tuple[str, str]
) -> None:
    async with opened() as client:
        headers = {header[0]: header[1].format(secret.text)}
        reply = await client.post(CHAT, json=QUESTION, headers=headers)
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({}, "Incorrect API key provided."),
        ({"x-api-key": "wrong"}, "Incorrect API key provided."),
        (
            {"x-api-key": "right"},
            "Incorrect API key provided. The key in Authorization: Bearer was read, not the one in "
            "x-api-key: send only one.",
        ),
    ],
)
async def test_a_refusal_says_which_of_two_keys_was_read(
    opened: Open, secret: Secret, others: dict[str, str], said: str
) -> None:
    keys = {"right": secret.text, "wrong": "wrong"}
    headers = {"authorization": "Bearer wrong"} | {name: keys[key] for name, key in others.items()}
    async with opened() as client:
        reply = await client.post(CHAT, json=QUESTION, headers=headers)
    assert (reply.status_code, reply.json()["error"]["message"]) == (401, said)


FACES = (
    (CHAT, "openai"),
    ("/v1/completions", "openai"),
    ("/v1/messages", "anthropic"),
    ("/api/chat", "ollama"),
    ("/v1/models", "openai"),
    ("/v1/tokenize", "openai"),
    ("/infill", "openai"),
    ("/v1/nowhere", "openai"),
)


def checked(face: str, reply: httpx.Response, kind: str) -> None:
    body = reply.json()
    if face == "openai":
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["type"] == kind
    elif face == "anthropic":
        names = {"account_error": "billing_error"}
        assert (body["type"], body["error"]["type"]) == ("error", names.get(kind, kind))
    else:
        assert isinstance(body["error"], str)


@pytest.mark.parametrize(("route", "face"), FACES)
@pytest.mark.parametrize("token", [None, "vm-abc-def", "sk-other", "{}x"])
async def test_without_a_good_key_every_route_of_a_model_is_a_401_in_its_own_shape(
    opened: Open, secret: Secret, backend: FakeBackend, route: str, face: str, token: str | None
) -> None:
    async with opened(token and token.format(secret.text)) as client:
        reply = await client.post(route, json=QUESTION)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    checked(face, reply, "authentication_error")
    assert secret.text not in reply.text and not backend.requests


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/openapi.json", "/docs"])
async def test_what_monitoring_and_readers_need_is_open(opened: Open, path: str) -> None:
    async with opened() as client:
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "scopes"),
    [
        ("POST", CHAT, ("generate",)),
        ("GET", "/v1/models", ("generate",)),
        ("POST", "/v1/anything/new", ("generate",)),
        ("GET", "/metrics", ("operate",)),
        ("POST", "/v1/load_lora_adapter", ("operate",)),
        ("DELETE", "/v1/models/mine", ("manage", "operate")),
        ("POST", "/v1/files", ("jobs",)),
        ("GET", "/v1/fine_tuning/jobs/a/events", ("jobs",)),
        ("GET", "/v1/usage", ("manage",)),
        ("GET", "/v1/accounts", ("manage",)),
        ("DELETE", "/v1/keys/abc", ("manage",)),
        ("POST", "/v1/accounts", ()),
        ("GET", "/health", ()),
    ],
)
def test_each_address_has_its_scope_and_new_ones_are_not_open(
    method: str, path: str, scopes: tuple[str, ...]
) -> None:
    assert RouteTable((*ROUTES, *account_routes.ROUTES)).scopes(method, path) == scopes


async def test_a_key_without_the_scope_is_a_403(opened: Open, store: Database, secret: Secret) -> None:
    only = NewKey(scopes=frozenset(("manage",)))
    key = organisations.create_key(store, secret.key.organisation_id, only)
    async with opened(key.text) as client:
        reply = await client.post(CHAT, json=QUESTION)
        metrics = await client.get("/metrics")
    assert (reply.status_code, metrics.status_code) == (403, 403)
    checked("openai", reply, "permission_error")


@pytest.mark.parametrize(("route", "face"), FACES[:4])
async def test_when_the_free_tokens_are_gone_the_answer_is_mercurys_402(
    opened: Open, store: Database, backend: FakeBackend, route: str, face: str
) -> None:
    none = NewOrganisation("Acme", "b@example.org", free_tokens=0)
    key = organisations.create_organisation(store, none)[2]
    body = {**QUESTION, "prompt": "hi", "max_tokens": 3, "model": "tiny-diffusion"}
    async with opened(key.text) as client:
        reply = await client.post(route, json=body)
        streamed = await client.post(route, json={**body, "stream": True})
    assert (reply.status_code, streamed.status_code) == (402, 402)
    checked(face, reply, "account_error")
    assert "Account is inactive" in reply.text
    assert not backend.requests


async def test_a_limit_is_a_429_that_says_when_and_headers_tell_what_is_left(
    opened: Open, store: Database, secret: Secret, clock: Clock
) -> None:
    organisations.change_key(store, secret.key.id, requests_per_minute=2, tokens_per_minute=1000)
    async with opened(secret.text) as client:
        first = await client.post(CHAT, json={**QUESTION, "stream": True})
        await client.post(CHAT, json=QUESTION)
        refused = await client.post(CHAT, json=QUESTION)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-reset-requests"] == "30s"
    assert first.headers["x-ratelimit-limit-tokens"] == "1000"
    assert first.headers["x-ratelimit-remaining-tokens"] == str(1000 - PROMPT_TOKENS)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "30"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    checked("openai", refused, "rate_limit_error")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
async def test_the_usage_a_client_reads_is_in_the_ledger_already(
    opened: Open, ledger: Callable[[], list[Any]], secret: Secret, stream: bool, n: int
) -> None:
    body = {**QUESTION, "n": n, "stream": stream, "stream_options": {"include_usage": True}}
    async with opened(secret.text) as client:
        reply = await client.post(CHAT, json=body)
        rows = ledger()
    usage = sse(reply.text)[-1]["usage"] if stream else reply.json()["usage"]
    (row,) = rows
    assert (row.prompt_tokens, row.completion_tokens, row.cached_tokens) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
        usage["cached_input_tokens"],
    )
    assert (row.completion_tokens, row.outcome) == (4 * n, "finished")
    assert row.request_id == reply.headers["x-request-id"]
    assert (row.route, row.model) == (CHAT, "tiny-diffusion")


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/fim/completions", {"prompt": "hi", "suffix": "x"}),
        ("/v1/messages", {**QUESTION, "max_tokens": 9}),
        ("/api/chat", {**QUESTION, "model": "tiny-diffusion", "stream": False}),
        ("/api/generate", {"prompt": "hi", "model": "tiny-diffusion"}),
        ("/api/v0/chat/completions", QUESTION),
        ("/infill", {"input_prefix": "hi"}),
        (CHAT, {**QUESTION, "stream": True, "diffusing": True}),
        (
            "/v1/apply/completions",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": "<|original_code|>\na\nb\nc\n<|/original_code|>\n\n"
                        "<|update_snippet|>\nb\nx\nc\n<|/update_snippet|>",
                    }
                ]
            },
        ),
    ],
)
async def test_every_generating_route_writes_one_row(
    opened: Open, ledger: Callable[[], list[Any]], secret: Secret, route: str, body: dict[str, Any]
) -> None:
    async with opened(secret.text) as client:
        reply = await client.post(route, json=body)
    assert reply.status_code == 200, reply.text
    (row,) = ledger()
    assert (row.route, row.outcome) == (route, "finished")
    assert row.prompt_tokens > 0


async def test_each_of_several_prompts_is_charged_once(
    opened: Open, ledger: Callable[[], list[Any]], secret: Secret
) -> None:
    async with opened(secret.text) as client:
        reply = await client.post("/v1/completions", json={"prompt": ["ab", "cde"], "n": 2})
    (row,) = ledger()
    usage = reply.json()["usage"]
    assert (row.prompt_tokens, row.completion_tokens) == (5, 16)
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 16)


async def test_reading_lists_and_counting_tokens_costs_nothing(
    opened: Open, ledger: Callable[[], list[Any]], secret: Secret
) -> None:
    async with opened(secret.text) as client:
        for path in ("/v1/models", "/api/tags", "/api/v0/models", "/api/ps", "/props", "/slots"):
            assert (await client.get(path)).status_code == 200
        assert (await client.post("/v1/tokenize", json={"prompt": "hi"})).status_code == 200
    assert ledger() == []


async def test_a_failed_answer_is_charged_for_what_had_settled(
    opened: Open, ledger: Callable[[], list[Any]], secret: Secret, backend: FakeBackend
) -> None:
    async with opened(secret.text) as client:
        backend.failure = EngineFailure("broken")
        assert (await client.post(CHAT, json=QUESTION)).status_code == 500
        backend.failure = None
        backend.finish = Finish("error", Usage(PROMPT_TOKENS, 0, 2, 2), "broken too")
        await client.post(CHAT, json={**QUESTION, "stream": True})
    assert [(row.outcome, row.prompt_tokens, row.completion_tokens) for row in ledger()] == [
        ("failed", PROMPT_TOKENS, 1),
        ("failed", PROMPT_TOKENS, 2),
    ]


async def test_a_grammar_without_a_way_on_is_charged_for_its_prompt(
    opened: Open, ledger: Callable[[], list[Any]], secret: Secret, backend: FakeBackend
) -> None:
    backend.words = ()
    backend.finish = Finish("error", Usage(PROMPT_TOKENS), "no way on", "invalid_value")
    async with opened(secret.text) as client:
        assert (await client.post(CHAT, json=QUESTION)).status_code == 400
        assert (await client.post(CHAT, json={**QUESTION, "stream": True})).status_code == 400
    charged = [(row.outcome, row.prompt_tokens, row.completion_tokens) for row in ledger()]
    assert charged == [("failed", PROMPT_TOKENS, 0)] * 2


async def test_what_the_engine_refuses_is_not_in_the_ledger(
    opened: Open, ledger: Callable[[], list[Any]], secret: Secret, backend: FakeBackend, count
) -> None:
    backend.capacity = 0
    async with opened(secret.text) as client:
        assert (await client.post(CHAT, json=QUESTION)).status_code == 429
        assert (await client.post(CHAT, json={})).status_code == 400
    assert (ledger(), count("admissions")) == ([], 0)


async def leave_after(client: httpx.AsyncClient, text: str, **fields: Any) -> None:
    """Asks for a stream and closes the connection once `text` has come."""
    transport = client._transport
    app = transport.app  # type: ignore[union-attr]
    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "query_string": b"",
        "headers": [
            (b"content-type", b"application/json"),
            (b"authorization", client.headers["authorization"].encode()),
        ],
    }
    body = json.dumps({**QUESTION, "stream": True, **fields}).encode()
    came, arriving = asyncio.Event(), [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if arriving:
            return arriving.pop()
        await came.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if text.encode() in message.get("body", b""):
            came.set()

    await app(scope, receive, send)


async def test_a_client_that_leaves_is_charged_for_the_tokens_that_had_settled(
    opened: Open, ledger: Callable[[], list[Any]], secret: Secret, backend: FakeBackend, count
) -> None:
    backend.endless, backend.step_s = True, 0.01
    async with opened(secret.text) as client:
        await leave_after(client, "world", max_tokens=200)
    (row,) = ledger()
    assert (row.outcome, row.prompt_tokens, row.cached_tokens) == ("aborted", PROMPT_TOKENS, 4)
    assert 3 <= row.completion_tokens <= 6
    assert count("admissions") == 0
    assert backend.cancelled == 1


async def test_a_client_that_leaves_before_the_first_text_is_charged_for_its_prompt(
    opened: Open, ledger: Callable[[], list[Any]], secret: Secret, backend: FakeBackend
) -> None:
    backend.step_s = 60
    async with opened(secret.text) as client:
        asking = asyncio.create_task(client.post(CHAT, json=QUESTION))
        await until(lambda: backend.running == 1)
        asking.cancel()
        await until(lambda: backend.cancelled == 1)
    (row,) = ledger()
    assert (row.outcome, row.prompt_tokens, row.completion_tokens) == ("aborted", PROMPT_TOKENS, 0)


async def test_an_organisations_requests_share_stored_prefixes_with_nobody_elses(
    opened: Open, secret: Secret, backend: FakeBackend, store: Database
) -> None:
    other = organisations.create_organisation(store, NewOrganisation("Other", "o@example.org"))[2]
    for token in (secret.text, other.text, secret.text):
        async with opened(token) as client:
            assert (await client.post(CHAT, json=QUESTION)).is_success
    salts = [request.cache_salt for request in backend.requests]
    assert salts == [secret.key.organisation_id, other.key.organisation_id, secret.key.organisation_id]


async def test_nobody_reads_deletes_or_goes_on_from_anothers_response(
    opened: Open, store: Database, secret: Secret
) -> None:
    other = organisations.create_organisation(store, NewOrganisation("Other", "b@example.org"))[2]
    theirs = {"authorization": f"Bearer {other.text}"}
    async with opened(secret.text) as client:
        id = (await client.post("/v1/responses", json={"input": "hi"})).json()["id"]
        on = {"input": "more", "previous_response_id": id}
        for method, path, body, status in (
            ("GET", f"/v1/responses/{id}", None, 404),
            ("DELETE", f"/v1/responses/{id}", None, 404),
            ("POST", "/v1/responses", on, 400),
            ("POST", "/v1/responses/input_tokens", on, 400),
        ):
            reply = await client.request(method, path, json=body, headers=theirs)
            assert (reply.status_code, id in reply.json()["error"]["message"]) == (status, True)
        assert (await client.get(f"/v1/responses/{id}")).status_code == 200
        assert (await client.post("/v1/responses", json=on)).status_code == 200


async def test_an_idempotency_key_answers_again_without_the_engine_or_a_charge(
    opened: Open, ledger: Callable[[], list[Any]], secret: Secret, backend: FakeBackend
) -> None:
    headers = {"Idempotency-Key": "mine"}
    body = {**QUESTION, "logprobs": True, "top_logprobs": 2}
    async with opened(secret.text) as client:
        first = await client.post(CHAT, json=body, headers=headers)
        again = await client.post(CHAT, json=body, headers=headers)
        other = await client.post(CHAT, json={**body, "max_tokens": 1}, headers=headers)
        wrong = await client.post(CHAT, json=body, headers={"Idempotency-Key": "k" * 201})
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    same = ("choices", "usage", "model")
    assert [again.json()[name] for name in same] == [first.json()[name] for name in same]
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert wrong.status_code == 400
    assert len(backend.requests) == len(ledger()) == 1


async def test_a_revoked_key_is_refused_at_once_for_answers(
    opened: Open, store: Database, secret: Secret
) -> None:
    async with opened(secret.text) as client:
        assert (await client.post(CHAT, json=QUESTION)).status_code == 200
        organisations.revoke_key(store, secret.key.id)
        reply = await client.post(CHAT, json=QUESTION)
    assert reply.status_code == 401


@pytest.mark.parametrize(("route", "face"), FACES[:4])
async def test_while_the_database_is_away_every_face_is_told_to_try_again(
    opened: Open, secret: Secret, monkeypatch: pytest.MonkeyPatch, route: str, face: str
) -> None:
    def away(*_: Any) -> None:
        raise sa.exc.OperationalError("SELECT", {"id": "secret"}, Exception("no route to host"))

    monkeypatch.setattr(organisations, "find_key", away)
    async with opened(secret.text) as client:
        reply = await client.post(route, json=QUESTION)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
    checked(face, reply, "overloaded_error" if face == "anthropic" else "server_error")


async def test_an_expired_key_is_refused(opened: Open, store: Database, secret: Secret) -> None:
    past = replace(NewKey(), expires_at_us=now_us() - 1)
    key = organisations.create_key(store, secret.key.organisation_id, past)
    async with opened(key.text) as client:
        assert (await client.get("/v1/models")).status_code == 401


async def test_limits_hold_for_the_organisation_over_its_keys(
    opened: Open, store: Database, secret: Secret, backend: FakeBackend
) -> None:
    organisations.change_organisation(store, secret.key.organisation_id, concurrency=2)
    second = organisations.create_key(
        store, secret.key.organisation_id, NewKey(limits=RateLimits(concurrency=9))
    )
    backend.endless, backend.step_s = True, 0.001
    async with opened() as client:

        async def ask(key: Secret) -> int:
            headers = {"x-api-key": key.text}
            return (await client.post(CHAT, json=QUESTION, headers=headers)).status_code

        asked = [asyncio.create_task(ask(key)) for key in (secret, second) * 3]
        await until(lambda: sum(task.done() for task in asked) == 4)
        assert {task.result() for task in asked if task.done()} == {429}
        backend.endless = False
        statuses = await asyncio.gather(*asked)
    assert sorted(statuses) == [200, 200, 429, 429, 429, 429]
