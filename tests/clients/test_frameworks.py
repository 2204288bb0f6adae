"""Python frameworks for agents, in an environment of their own, against the scripted engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.conftest import Proven
from clients.installed import PROGRAMS, environment, installed, run
from clients.running import MODEL, Running
from clients.scripted import ANSWER, scripted

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with scripted(tmp_path_factory.mktemp("scripted") / "log") as service:
        yield service


@pytest.mark.parametrize(
    ("framework", "num_answers", "num_calls", "routes", "what"),
    [
        (
            "pydantic-ai",
            2,
            2,
            ["/v1/chat/completions", "/v1/responses"],
            "text and tool output on chat and responses, native output on chat",
        ),
        ("instructor", 0, 1, ["/v1/chat/completions"], "JSON schema and tools mode"),
        (
            "openai-agents",
            2,
            2,
            ["/v1/chat/completions", "/v1/responses"],
            "text and an executed tool on chat and responses, an output type",
        ),
        (
            "langchain",
            4,
            3,
            ["/v1/chat/completions", "/v1/responses", "/v1/messages"],
            "ChatOpenAI on chat and responses, ChatAnthropic: text, stream, structured output, any tool",
        ),
        ("smolagents", 1, 1, ["/v1/chat/completions"], "text and a required tool through OpenAIServerModel"),
        ("mini-swe-agent", 0, 1, ["/v1/chat/completions"], "a file edited by a demanded bash call"),
        (
            "litellm",
            16,
            0,
            ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions"],
            "openai, hosted_vllm, lm_studio, azure, anthropic, ollama, ollama_chat whole and streamed; "
            "responses, anthropic_messages, text-completion-openai",
        ),
        (
            "langchain-aws",
            2,
            1,
            [],
            "ChatBedrockConverse: text, stream, structured output, any tool",
        ),
        (
            "litellm-clouds",
            7,
            1,
            [],
            "bedrock converse and invoke, azure_ai whole and streamed, sagemaker_chat; a required tool",
        ),
    ],
)
def test_a_framework_speaks_to_the_service(
    framework: str,
    num_answers: int,
    num_calls: int,
    routes: list[str],
    what: str,
    service: Running,
    tmp_path: Path,
    proven: Proven,
) -> None:
    python = installed("frameworks/bin/python")
    num_before = len(service.requests())
    command = [python, PROGRAMS / "ask_frameworks.py", framework, service.url, MODEL]
    ran = run(command, environment(tmp_path), tmp_path)
    assert ran.status == 0, ran.errors
    found = json.loads(ran.output.splitlines()[-1])
    assert len(found["answers"]) == num_answers
    assert set(found["answers"]) <= {ANSWER}
    assert found["shaped"] is None or set(found["shaped"]) == {"city"}
    assert len(found["called"]) == num_calls
    assert set(found["called"]) <= {2}
    asked = service.requests()[num_before:]
    assert all(request.endswith(" 200") for request in asked), asked
    assert all(f"POST {route} 200" in asked for route in routes), asked
    proven(framework, found["version"], what)
