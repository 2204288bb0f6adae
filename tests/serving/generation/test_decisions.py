"""POST /v1/decisions: both shapes, one form and one pass, offsets measured once and taken off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from inceptionai import AsyncInception

from serving.fake import MODEL, FakeBackend, fake_service
from vermilion.serving.generation.decisions import probabilities
from vermilion.serving.http.app import create_app

pytestmark = pytest.mark.anyio
QUESTIONS = {
    "kind": {"type": "noul", "instructions": "Is it kind?", "criteria": {"true": "it thanks"}},
    "tone": {"type": "choice", "criteria": {"warm": "friendly", "cold": None}},
    "stars": {"type": "score", "criteria": ["bad", {"it": "is good"}, "great"], "instructions": "How many?"},
}
LISTED = [
    {"type": "predicate", "name": "kind", "instructions": [{"type": "input_text", "text": "It is kind."}]},
    {"type": "choice", "instructions": "?", "choices": [{"value": True}, {"value": "true"}, {"value": "b"}]},
    {"type": "score", "instructions": "?", "levels": [{"label": "low"}, {"label": "high"}]},
]


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(model=replace(MODEL, context_length=4096))


async def decide(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/decisions", json=body)


async def test_questions_by_name_are_answered_in_inceptions_shape(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    reply = (await decide(client, state={"said": "www"}, questions=QUESTIONS)).json()
    answers = reply["answers"]
    assert set(answers["kind"]) == {"type", "noul"} and 0 <= answers["kind"]["noul"] <= 1
    tone = answers["tone"]
    # Only the state speaks for the letter w: what the form itself says is taken off.
    assert tone["choice"] == "warm" and tone["confidence"] == tone["probabilities"]["warm"] > 0.9
    assert sum(tone["probabilities"].values()) == pytest.approx(1)
    stars = answers["stars"]
    assert stars["legend"] == {"0": "bad", "1": {"it": "is good"}, "2": "great"}
    assert stars["score"] == pytest.approx(1) and set(stars["probabilities"]) == {"0", "1", "2"}
    asked, empty = backend.requests
    assert reply["usage"] == {"input_tokens": len(asked.prompt), "output_tokens": 6}
    text, blank = ("".join(map(chr, request.prompt)) for request in (asked, empty))
    assert '{"said": "www"}' in text and "yes (it thanks)" in text and "Is it kind?" in text
    assert text.replace('{"said": "www"}', "") == blank
    assert asked.seeds == empty.seeds and asked.seeds is not None
    assert asked.seeds.ids.count(None) == 3


async def test_offsets_are_measured_once(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    for state in ("a", "b", "b"):
        assert (await decide(client, state=state, questions=QUESTIONS)).status_code == 200
    assert len(backend.requests) == 4
    await decide(client, state="a", questions={"kind": QUESTIONS["kind"]})
    assert len(backend.requests) == 6


async def test_offsets_are_measured_again_once_an_adapter_is_loaded_anew(
    open_client, backend: FakeBackend, tmp_path: Path
) -> None:
    (tmp_path / "legal").mkdir()
    (tmp_path / "legal" / "adapter_config.json").write_text("{}")
    adapter = {"lora_name": "legal", "lora_path": "legal"}
    async with open_client(adapter_folder=tmp_path) as client:
        for expected in (3, 6):
            assert (await client.post("/v1/load_lora_adapter", json=adapter)).is_success
            for _ in range(2):
                assert (await decide(client, model="legal", state="a", questions=QUESTIONS)).is_success
            assert (await decide(client, state="a", questions=QUESTIONS)).is_success
            assert (await client.post("/v1/unload_lora_adapter", json={"lora_name": "legal"})).is_success
            asked = [request.adapter for request in backend.requests]
            assert asked.count("legal") == expected
    assert asked.count("") == 3


async def test_questions_in_order_are_answered_in_openais_shape(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]
    reply = (await decide(client, input=messages, questions=LISTED)).json()
    predicate, choice, score = reply["answers"]
    assert (predicate["type"], predicate["name"]) == ("predicate", "kind")
    assert [row["value"] for row in choice["probabilities"]] == [True, "true", "b"]
    assert sum(row["probability"] for row in choice["probabilities"]) == pytest.approx(1)
    assert [(row["label"], row["value"]) for row in score["probabilities"]] == [("low", 0), ("high", 1)]
    assert reply["usage"]["total_tokens"] == reply["usage"]["input_tokens"] + reply["usage"]["output_tokens"]


async def test_options_that_begin_alike_get_letters(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    criteria = {f"option {number}": None for number in range(40)}
    reply = await decide(client, state="x", questions={"q": {"type": "choice", "criteria": criteria}})
    assert set(reply.json()["answers"]["q"]["probabilities"]) == set(criteria)
    assert "A (option 0), B (option 1)" in "".join(map(chr, backend.requests[0].prompt))


@pytest.mark.parametrize(
    ("body", "fragment"),
    [
        ({"questions": QUESTIONS}, "state"),
        ({"state": "x", "questions": LISTED}, "input"),
        ({"state": "x", "questions": {}}, "questions"),
        ({"state": "x", "questions": {"q": {"type": "choice", "criteria": {}}}}, "questions"),
        ({"state": [{"type": "image_url", "image_url": {}}], "questions": QUESTIONS}, "images"),
        ({"state": "x" * 5000, "questions": QUESTIONS}, "context"),
        ({"state": "x", "questions": {"q": {"type": "noul"}}, "model": "other"}, "other"),
    ],
)
async def test_what_cannot_be_decided_is_refused(
    client: httpx.AsyncClient, body: dict[str, Any], fragment: str
) -> None:
    reply = await decide(client, **body)
    assert reply.status_code in (400, 404)
    assert fragment in reply.json()["error"]["message"]


async def test_the_official_clients_read_it(backend: FakeBackend) -> None:
    transport = httpx.ASGITransport(create_app(fake_service(backend)))
    async with httpx.AsyncClient(transport=transport) as http:
        inception = AsyncInception(
            api_key="x",
            base_url="http://localhost",
            http_client=http,
            _strict_response_validation=True,
        )
        decision = await inception.decisions.create(
            model="mercury-decide",
            state="www",
            questions=QUESTIONS,  # type: ignore[arg-type]
        )
        assert decision.answers["tone"].choice == "warm"  # type: ignore[union-attr]
        other = openai.AsyncOpenAI(
            api_key="x",
            base_url="http://localhost/v1",
            http_client=http,
            _strict_response_validation=True,
        )
        answered = await other.decisions.create(model="mercury-decide", input="www", questions=LISTED)  # type: ignore[arg-type]
        assert [answer.type for answer in answered.answers] == ["predicate", "choice", "score"]


def test_probabilities_are_relative_to_the_empty_state() -> None:
    assert probabilities([-1.0, -2.0], [-1.0, -2.0]) == pytest.approx([0.5, 0.5])
    assert probabilities([-1.0, -9.0], [-1.0, -11.0])[1] == pytest.approx(0.8808, abs=1e-4)
