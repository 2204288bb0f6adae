"""The lists of models, their names and their tokens; the names the service itself may be asked under."""

from __future__ import annotations

import httpx
import pytest

from serving.fake import FakeBackend, fake_service, served
from vermilion.serving.generation.model_names import MERCURY_NAMES
from vermilion.serving.http.app import create_app
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.service_state import ServiceState

pytestmark = pytest.mark.anyio
QUESTION = {"messages": [{"role": "user", "content": "hi"}]}


async def ids(client: httpx.AsyncClient, path: str) -> list[str]:
    listed = (await client.get(path)).json()
    assert listed["object"] == "list"
    return [row["id"] for row in listed["data"]]


async def test_each_endpoint_lists_the_models_it_answers_with(client: httpx.AsyncClient) -> None:
    assert await ids(client, "/v1/chat/completions/models") == ["tiny-diffusion"]
    assert await ids(client, "/v1/fim/completions/models") == ["tiny-diffusion"]
    assert await ids(client, "/v1/edit/completions/models") == ["tiny-diffusion"]


async def test_a_model_without_a_template_is_not_listed_for_chat(backend: FakeBackend) -> None:
    transport = httpx.ASGITransport(create_app(ServiceState(ServeConfig(), served(backend, None))))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert await ids(client, "/v1/chat/completions/models") == []
        assert await ids(client, "/v1/fim/completions/models") == ["tiny-diffusion"]
        body = {"model": "tiny-diffusion", "prompt": "a", "stream": False}
        assert (await client.post("/api/generate", json=body)).json()["response"] == "Hello, world!"
        show = await client.post("/api/show", json={"model": "tiny-diffusion"})
        assert show.json()["capabilities"] == ["insert"]
    assert backend.requests[0].prompt == (97,)


async def test_mercurys_names_are_answered_and_listed_unless_the_operator_minds(open_client) -> None:
    async with open_client(aliases={"mine": "tiny-diffusion", "no": "x"}) as client:
        assert await ids(client, "/v1/models") == ["tiny-diffusion", "mine", *MERCURY_NAMES]
        assert await ids(client, "/v1/chat/completions/models") == ["tiny-diffusion", "mine"]
        for name in ("mine", *MERCURY_NAMES):
            reply = await client.post("/v1/chat/completions", json={**QUESTION, "model": name})
            assert (reply.status_code, reply.json()["model"]) == (200, "tiny-diffusion")
            assert (await client.get(f"/v1/models/{name}")).json()["name"] == "tiny-diffusion"
    async with open_client(mercury_names=False) as client:
        assert await ids(client, "/v1/models") == ["tiny-diffusion"]
        reply = await client.post("/v1/chat/completions", json={**QUESTION, "model": "mercury-2"})
        assert reply.status_code == 404


@pytest.mark.parametrize("path", ["/v1/tokenize", "/tokenize"])
async def test_tokens_of_a_text_and_of_a_conversation(client: httpx.AsyncClient, path: str) -> None:
    reply = (await client.post(path, json={"prompt": "hi", "return_token_strs": True})).json()
    assert reply == {"count": 2, "max_model_len": 256, "tokens": [104, 105], "token_strs": ["h", "i"]}
    assert (await client.post(path, json={"content": ""})).json()["tokens"] == []
    messages = (await client.post(path, json=QUESTION)).json()
    assert messages["count"] == len("user:hi\n")
    assert (await client.post(path, json={})).json()["error"]["param"] == "prompt"


async def test_detokenize_takes_tokens_back(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/detokenize", json={"tokens": [104, 105]})
    assert reply.json() == {"prompt": "hi", "content": "hi"}
    wrong = await client.post("/v1/detokenize", json={"tokens": [-1]})
    assert wrong.json()["error"]["param"] == "tokens"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST.:8000", 200),
        ("app.localhost", 200),
        ("127.0.0.1:8000", 200),
        ("127.9.9.9", 200),
        ("[::1]:8000", 200),
        ("evil.example.org", 403),
        ("127.0.0.1.evil.org", 403),
        ("localhost.evil.org:8000", 403),
        ("192.168.1.5", 403),
        ("[::2]", 403),
        ("", 403),
    ],
)
async def test_a_loopback_service_answers_only_to_names_of_this_computer(
    client: httpx.AsyncClient, host: str, status: int
) -> None:
    reply = await client.post("/v1/chat/completions", json=QUESTION, headers={"host": host})
    assert reply.status_code == status
    if status == 403:
        error = reply.json()["error"]
        assert (error["type"], error["code"]) == ("permission_error", "host_not_allowed")
        assert "allowed_hosts" in error["message"]
        assert reply.headers["x-request-id"]
        assert (await client.get("/metrics", headers={"host": host})).status_code == 403


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({}, 403),
        ({"allowed_hosts": ("Box.lan",)}, 200),
        ({"allowed_hosts": ("*",)}, 200),
        ({"allowed_hosts": ("other.lan",)}, 403),
        ({"host": "0.0.0.0", "open": True}, 200),
    ],
)
async def test_the_operator_allows_more_names(open_client, settings: dict[str, object], status: int) -> None:
    async with open_client(**settings) as client:
        reply = await client.get("/v1/models", headers={"host": "box.LAN:8000"})
        assert reply.status_code == status


async def test_a_request_without_a_host_is_no_browsers(backend: FakeBackend) -> None:
    app, statuses = create_app(fake_service(backend)), []

    async def send(message: dict[str, object]) -> None:
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": "GET", "path": "/health", "query_string": b"", "headers": []}
    await app(scope, None, send)
    assert statuses[0] == 200
