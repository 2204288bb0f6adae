"""Clients for Node: OpenAI's, Vercel's AI SDK, Continue's adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from clients.conftest import Proven
from clients.installed import FOLDER, PROGRAMS, environment, installed, node_version, run
from clients.running import MODEL, Running

pytestmark = [pytest.mark.model, pytest.mark.clients, pytest.mark.timeout(1200)]
ANSWER = "The capital of France is Paris."


def told(program: str, package: str, service: Running, home: Path) -> dict[str, Any]:
    """What a program of ours, which uses the package, found out."""
    installed(f"node/node_modules/{package}/package.json")
    # Node looks for packages above the program's own file.
    script = shutil.copy(PROGRAMS / program, FOLDER / "node")
    ran = run(["node", script, service.v1, MODEL], environment(home), home)
    assert ran.status == 0, ran.errors
    found: dict[str, Any] = json.loads(ran.output.splitlines()[-1])
    return found


def test_openais_client_does_all_it_can(service: Running, tmp_path: Path, proven: Proven) -> None:
    found = told("openai.mjs", "openai", service, tmp_path)
    assert found["answer"] == found["streamed"] == found["helper"] == ANSWER
    assert found["usage"] == found["streamedUsage"]
    assert set(found["parsed"]) == {"city"}
    assert json.loads(found["call"]["arguments"])["level"] in (1, 2, 3)
    assert found["completion"]
    assert found["models"][0] == MODEL
    assert "not trained to give vectors" in found["embeddings"]
    what = "chat, stream, parse, tools, completions, models; embeddings: a clear 501"
    proven("openai (Node)", node_version("openai"), what)


def test_openais_client_reads_responses(service: Running, tmp_path: Path, proven: Proven) -> None:
    found = told("openai_responses.mjs", "openai", service, tmp_path)
    assert found["answer"] == found["streamed"] == ANSWER
    assert found["usage"] == found["streamedUsage"]
    numbers, kinds = zip(*found["events"], strict=True)
    assert list(numbers) == list(range(len(numbers)))
    kinds = [kind.removeprefix("response.") for kind in kinds]
    deltas = kinds.count("output_text.delta")
    assert deltas > 1
    opening = ["created", "in_progress", "output_item.added", "content_part.added"]
    ending = ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert kinds == [*opening, *["output_text.delta"] * deltas, *ending]
    assert found["parsed"] == found["helped"]
    assert set(found["parsed"]) == {"city"}
    assert found["call"]["name"] == "set_volume"
    assert found["call"]["level"] in (1, 2, 3)
    assert [kind.removeprefix("response.") for kind in found["callEvents"]] == [
        "created",
        "in_progress",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert json.loads(found["callArguments"]) == {"level": found["call"]["level"]}
    assert found["answered"] in ("completed", "incomplete")
    assert found["cut"] == "max_output_tokens"
    assert found["continued"]
    assert found["kept"] == ANSWER
    assert (found["gone"]["status"], found["gone"]["param"]) == (400, "previous_response_id")
    what = "responses: create, stream, zod, a function called and answered; one kept, gone on from, deleted"
    proven("openai (Node)", node_version("openai"), what)


def test_the_ai_sdk_makes_text_objects_and_calls(service: Running, tmp_path: Path, proven: Proven) -> None:
    found = told("ai_sdk.mjs", "@ai-sdk/openai-compatible", service, tmp_path)
    assert found["answer"] == found["streamed"] == ANSWER
    assert found["tokens"] == found["streamedTokens"]
    assert set(found["object"]) == {"city"}
    assert found["result"] == f"the volume is {found['call']['level']}"
    assert found["completion"]
    what = "text, stream, object by schema, executed tool, completion"
    proven("@ai-sdk/openai-compatible", node_version("@ai-sdk/openai-compatible"), what)


def test_continues_adapters_complete_edit_and_apply(service: Running, tmp_path: Path, proven: Proven) -> None:
    asked = len(service.requests())
    found = told("continue_adapters.mjs", "@continuedev/openai-adapters", service, tmp_path)
    assert found["chat"] == ANSWER
    assert found["autocomplete"] == found["fim"] == found["withoutSlash"] != ""
    assert found["atTheEnd"]
    assert found["edit"] == "None" or found["edit"].startswith("```\n")
    assert found["apply"]
    routes = {request.split()[1] for request in service.requests()[asked:]}
    assert routes == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/fim/completions",
        "/v1/edit/completions",
        "/v1/apply/completions",
    }
    what = "chat, autocomplete, next edit, apply; with and without the slash at the address's end"
    proven("@continuedev/openai-adapters", node_version("@continuedev/openai-adapters"), what)
