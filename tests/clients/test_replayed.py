"""Editors that cannot be run without a screen: their requests, and what they read out of the replies.

The requests lie in replayed/, each with where it is known from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from clients.conftest import Proven
from clients.running import MODEL, Running

pytestmark = [pytest.mark.model, pytest.mark.slow]
ANSWER = "The capital of France is Paris."
_HERE = Path(__file__).parent / "replayed"
PROXYAI = json.loads((_HERE / "proxyai.json").read_text())
ZED = json.loads((_HERE / "zed.json").read_text())
JETBRAINS = json.loads((_HERE / "jetbrains.json").read_text())


def ask(service: Running, request: Mapping[str, Any]) -> httpx.Response:
    reply = httpx.request(
        request.get("method", "POST"),
        f"{service.url}{request['path']}",
        json=request.get("body"),
        headers={"Authorization": "Bearer unused"},
        timeout=60,
    )
    assert reply.status_code == 200, reply.text
    return reply


def events(reply: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def spoken(reply: httpx.Response) -> str:
    return "".join(
        choice["delta"].get("content") or "" for event in events(reply) for choice in event["choices"]
    )


def test_proxy_ai_chats_with_every_field_its_strict_reader_demands(service: Running, proven: Proven) -> None:
    reply = ask(service, PROXYAI["chat"])
    assert all({"id", "object", "created", "model", "choices"} <= set(event) for event in events(reply))
    assert spoken(reply) == ANSWER
    proven("Proxy AI", "requests", "chat: every chunk has what koog's reader demands")


def test_proxy_ai_completes_edits_and_applies(service: Running, proven: Proven) -> None:
    assert ask(service, PROXYAI["completion"]).json()["choices"][0]["text"]
    edited = ask(service, PROXYAI["edit"]).json()["choices"][0]["message"]["content"]
    # It takes what the first fence holds, whatever the fence is marked with.
    assert edited == "None" or re.search(r"```\n(.*?)\n```", edited, re.DOTALL)
    applied = ask(service, PROXYAI["apply"]).json()["choices"][0]["message"]["content"]
    assert applied == "val a = 1\nval b = 2\nval x = 4\nval c = 3"
    proven("Proxy AI", "requests", "code completion, next edit, auto apply")


def test_jetbrains_finds_the_service_as_an_openai_compatible_one(service: Running, proven: Proven) -> None:
    listing, chat = JETBRAINS["openai"]
    (row,) = ask(service, listing).json()["data"]
    assert (row["id"], row["object"]) == (MODEL, "model")
    assert spoken(ask(service, chat)) == ANSWER
    proven("JetBrains AI Assistant", "requests", "as an OpenAI-compatible service: models, chat")


def test_jetbrains_finds_the_service_as_ollama(service: Running, proven: Proven) -> None:
    root, tags, show, chat = JETBRAINS["ollama"]
    assert ask(service, root).text == "Ollama is running"
    assert [row["name"] for row in ask(service, tags).json()["models"]] == [f"{MODEL}:latest"]
    assert ask(service, show).json()["model_info"]["diffusion.context_length"] == 8192
    lines = [json.loads(line) for line in ask(service, chat).text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == ANSWER
    assert lines[-1]["done"] is True
    proven("JetBrains AI Assistant", "requests", "as Ollama: root, tags, show, chat")


def test_jetbrains_finds_the_service_as_lm_studio(service: Running, proven: Proven) -> None:
    listing, chat, completion = JETBRAINS["lmstudio"]
    assert [row["id"] for row in ask(service, listing).json()["data"]] == [MODEL]
    assert spoken(ask(service, chat)) == ANSWER
    pieces = [choice["text"] for event in events(ask(service, completion)) for choice in event["choices"]]
    assert "".join(pieces)
    proven("JetBrains AI Assistant", "requests", "as LM Studio: models, chat, completions")


def test_zed_gets_predictions_for_a_gap_in_another_models_marks(service: Running, proven: Proven) -> None:
    body = ZED["prediction"]["body"]
    told = ask(service, ZED["prediction"]).json()
    before, after = body["prompt"].removeprefix("<|fim_prefix|>").split("<|fim_suffix|>")
    gap = {**body, "prompt": before, "suffix": after.removesuffix("<|fim_middle|>")}
    filled = ask(service, {"path": "/v1/completions", "body": gap}).json()
    assert told["id"]
    assert told["choices"][0]["text"] == filled["choices"][0]["text"] != ""
    proven("Zed", "requests", "edit predictions: the gap in the prompt's marks is filled")
