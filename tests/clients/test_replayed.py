"""Editors that cannot be run without a screen: their requests, and what they read out of the replies.

The requests lie in replayed/, each with where it is known from.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from clients.conftest import Proven
from clients.running import MODEL, Running

pytestmark = [pytest.mark.model, pytest.mark.slow]
ANSWER = "The capital of France is Paris."
_TIMEOUT_S = 120
_HERE = Path(__file__).parent / "replayed"
PROXYAI = json.loads((_HERE / "proxyai.json").read_text())
ZED = json.loads((_HERE / "zed.json").read_text())
JETBRAINS = json.loads((_HERE / "jetbrains.json").read_text())


_OPENED = {"Authorization": "Bearer unused"}


def ask(service: Running, request: Mapping[str, Any]) -> httpx.Response:
    reply = httpx.request(
        request.get("method", "POST"),
        f"{service.url}{request['path']}",
        json=request.get("body"),
        headers=request.get("headers", _OPENED),
        timeout=_TIMEOUT_S,
    )
    assert reply.status_code == 200, reply.text
    return reply


def count(service: Running, name: str) -> float:
    """A figure of the service's metrics."""
    text = httpx.get(f"{service.url}/metrics", timeout=_TIMEOUT_S).text
    return float(re.search(rf"^vermilion_{name} (\S+)$", text, re.MULTILINE)[1])


def hang_up(service: Running, request: Mapping[str, Any]) -> None:
    """Closes a stream of many tokens after its first piece; asserts that the service stops working at it."""
    limits = {"max_tokens": 4000, "options": {"num_predict": 4000}, "max_completion_tokens": 4000}
    question = [{"role": "user", "content": "Tell me a long story about a lighthouse."}]
    body = {**request["body"], **limits, "messages": question}
    before = count(service, "cancellations_total")
    headers = request.get("headers", _OPENED)
    with httpx.stream(
        "POST", f"{service.url}{request['path']}", json=body, headers=headers, timeout=_TIMEOUT_S
    ) as reply:
        assert next(line for line in reply.iter_lines() if line)
    deadline_s = time.monotonic() + _TIMEOUT_S
    # It takes effect between two steps of the engine.
    while count(service, "cancellations_total") == before or count(service, "running_requests"):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


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


def test_proxy_ais_agent_offers_tools_and_wants_usage(service: Running, proven: Proven) -> None:
    *told, last = events(ask(service, PROXYAI["agent"]))
    assert told[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in told)
    assert (last["choices"], last["usage"]["total_tokens"] > 0) == ([], True)
    proven("Proxy AI", "requests", "agent: tools offered, usage in the last chunk")


@pytest.mark.parametrize(
    ("client", "request_"),
    [
        ("Proxy AI", PROXYAI["chat"]),
        ("Zed", ZED["chat"]),
        ("JetBrains AI Assistant", JETBRAINS["ollama"][3]),
        ("JetBrains AI Assistant", JETBRAINS["lmstudio"][1]),
    ],
    ids=["proxyai", "zed", "ollama", "lmstudio"],
)
def test_an_answer_that_nobody_waits_for_ends(
    client: str, request_: Mapping[str, Any], service: Running, proven: Proven
) -> None:
    hang_up(service, request_)
    proven(client, "requests", f"a stream of {request_['path']} cut off in its middle")


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
    row = ask(service, listing).json()["data"][0]
    assert (row["id"], row["object"]) == (MODEL, "model")
    reply = ask(service, chat)
    assert spoken(reply) == ANSWER
    assert events(reply)[-1]["usage"]["completion_tokens"] > 0
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
    # Its reader demands all of these.
    assert {"id", "object", "created", "model", "choices", "usage"} <= told.keys()
    assert {"prompt_tokens", "completion_tokens", "total_tokens"} <= told["usage"].keys()
    assert told["choices"][0]["text"] == filled["choices"][0]["text"] != ""
    proven("Zed", "requests", "edit predictions: the gap in the prompt's marks is filled")


def test_zeds_mercury_provider_and_its_agent_are_answered(service: Running, proven: Proven) -> None:
    told = ask(service, ZED["mercury"]).json()
    assert {"id", "object", "created", "model", "choices", "usage"} <= told.keys()
    content = told["choices"][0]["message"]["content"]
    assert content == "None" or (content.startswith("```\n") and content.endswith("\n```"))
    *chunks, last = events(ask(service, ZED["chat"]))
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert last["usage"]["total_tokens"] > 0
    proven("Zed", "requests", "next edit in Mercury's layout; agent: parts, tools, usage in the last chunk")
