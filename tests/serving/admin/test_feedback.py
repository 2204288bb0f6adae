"""POST /v1/feedback: kept with the figures of the request it speaks of, and nothing of its words."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from serving.fake import FakeBackend, fake_service
from vermilion.serving.http.app import ROUTES, create_app
from vermilion.serving.http.routes import RouteTable
from vermilion.serving.jobs.background import BackgroundJobs

pytestmark = pytest.mark.anyio
CHAT = {"messages": [{"role": "user", "content": "secret"}]}


async def test_feedback_is_kept_with_its_request(tmp_path: Path) -> None:
    service = fake_service(FakeBackend(words=("private",)))
    store = SimpleNamespace(folder=tmp_path)
    service.background = BackgroundJobs(store, SimpleNamespace(owners={}), None)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        id = (await client.post("/v1/chat/completions", json={**CHAT, "n": 2})).json()["id"]
        for action in ("accept", "reject"):
            body = {"request_id": id, "user_action": action, "provider_name": "zed", "provider_version": "1"}
            reply = await client.post("/feedback", json=body)
            assert reply.json() == {"object": "feedback", "request_id": id, "stored": True}
        metrics = (await client.get("/metrics")).text
    assert 'vermilion_feedback_total{action="accept"} 1.0' in metrics
    text = (tmp_path / "feedback.jsonl").read_text()
    first, second = map(json.loads, text.splitlines())
    assert (first["user_action"], second["user_action"]) == ("accept", "reject")
    request = first["request"]
    assert (request["model"], request["finish_reason"]) == ("tiny-diffusion", "stop")
    assert request["usage"]["completion_tokens"] == 1
    assert "secret" not in text and "private" not in text


async def test_unknown_answers_and_actions_are_refused(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/feedback", json={"request_id": "cmpl-x", "user_action": "accept"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "request_not_found")
    reply = await client.post("/v1/feedback", json={"request_id": "x", "user_action": "loved"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "user_action")


async def test_without_a_folder_it_only_counts(client: httpx.AsyncClient) -> None:
    id = (await client.post("/v1/chat/completions", json=CHAT)).json()["id"]
    reply = await client.post("/v1/feedback/", json={"request_id": id, "user_action": "ignore"})
    assert reply.json()["stored"] is False


def test_editors_send_it_without_a_key() -> None:
    assert RouteTable(ROUTES).scopes("POST", "/v1/feedback") == ()
