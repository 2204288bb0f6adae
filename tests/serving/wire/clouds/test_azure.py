"""Azure's clients, unmodified, over a socket: OpenAI's for Azure, and Azure AI's own, in both their forms."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from azure.ai.inference import ChatCompletionsClient
from azure.ai.inference import models as azure
from azure.ai.inference.aio import ChatCompletionsClient as AsyncChatCompletionsClient
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

from serving.fake import MODEL, FakeBackend

KEY = AzureKeyCredential("any")
QUESTION = [azure.SystemMessage("Be brief."), azure.UserMessage("hi")]
ASKED = [{"role": "user", "content": "hi"}]
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
TOOL = azure.ChatCompletionsToolDefinition(
    function=azure.FunctionDefinition(
        name="f",
        description="Does it.",
        parameters={"type": "object", "properties": {"x": {"type": "integer"}}},
    )
)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("below", ["", "/models", f"/openai/deployments/{MODEL.id}"])
def test_azure_ais_client_asks_at_every_address_it_knows(url: str, below: str) -> None:
    with ChatCompletionsClient(f"{url}{below}", KEY) as client:
        info = client.get_model_info()
        assert (info.model_name, info.model_type, info.model_provider_name) == (
            MODEL.id,
            "chat-completion",
            "vermilion",
        )
        whole = client.complete(messages=QUESTION)
        assert whole.choices[0].message.content == "Hello, world!"
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage.completion_tokens == 4
        told = [
            choice.delta.content or ""
            for update in client.complete(messages=QUESTION, stream=True)
            for choice in update.choices
        ]
        assert "".join(told) == "Hello, world!"


def test_it_offers_tools_and_reads_calls(url: str, backend: FakeBackend) -> None:
    backend.words = ("Well. ", *CALL)
    asked: dict[str, Any] = {"messages": QUESTION, "tools": [TOOL]}
    with ChatCompletionsClient(url, KEY) as client:
        reply = client.complete(**asked, tool_choice=azure.ChatCompletionsToolChoicePreset.AUTO)
        (call,) = reply.choices[0].message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("f", {"x": 1})
        assert reply.choices[0].finish_reason == azure.CompletionsFinishReason.TOOL_CALLS
        arguments = ""
        for update in client.complete(**asked, stream=True):
            for choice in update.choices:
                for piece in choice.delta.tool_calls or ():
                    arguments += piece.function.arguments or ""
        assert json.loads(arguments) == {"x": 1}
        named = azure.ChatCompletionsNamedToolChoice(
            function=azure.ChatCompletionsNamedToolChoiceFunction(name="f")
        )
        client.complete(**asked, tool_choice=named)
        assert backend.requests[-1].grammar is not None
        turns = [
            *QUESTION,
            azure.AssistantMessage(tool_calls=[call]),
            azure.ToolMessage('{"y": 2}', tool_call_id=call.id),
        ]
        client.complete(messages=turns, tools=[TOOL])
    assert '{"y": 2}' in "".join(map(chr, backend.requests[-1].prompt))


def test_it_asks_for_a_schema_and_for_any_json(url: str, backend: FakeBackend) -> None:
    form = azure.JsonSchemaFormat(name="place", schema=SCHEMA, description="A place.", strict=True)
    with ChatCompletionsClient(url, KEY) as client:
        client.complete(messages=QUESTION, response_format=form)
        client.complete(messages=QUESTION, response_format="json_object")
    assert [request.grammar.kind for request in backend.requests] == ["json_schema", "json_object"]


def test_extra_parameters_are_passed_dropped_or_refused_as_its_header_says(
    url: str, backend: FakeBackend
) -> None:
    extra = {"preset": "fast", "top_k": 5}
    with ChatCompletionsClient(url, KEY) as client:
        # The client says pass-through by itself wherever there are extras.
        client.complete(messages=QUESTION, model_extras=extra, seed=3)
        body = {"messages": ASKED, "seed": 3, **extra}
        client.complete(body, headers={"extra-parameters": "drop"})
        passed, dropped = backend.requests
        assert (passed.decoding, passed.sampling.top_k, passed.sampling.seed) == (MODEL.presets["fast"], 5, 3)
        assert (dropped.sampling.top_k, dropped.sampling.seed) == (0, 3)
        assert dropped.decoding != passed.decoding
        with pytest.raises(HttpResponseError, match="extra-parameters says error") as error:
            client.complete(body, headers={"extra-parameters": "error"})
        assert (error.value.status_code, error.value.error.code) == (422, "unsupported_parameter")
        client.complete(messages=QUESTION, headers={"extra-parameters": "error"})
        with pytest.raises(HttpResponseError, match="pass-through, drop, error"):
            client.complete(body, headers={"extra-parameters": "perhaps"})


def test_canvases_pass_through_it(url: str) -> None:
    with ChatCompletionsClient(url, KEY) as client:
        updates = client.complete(messages=QUESTION, stream=True, model_extras={"diffusing": True})
        frames = [
            (update["diffusion_meta"]["diffusion_progress"], update.choices[0].delta.content)
            for update in updates
            if "diffusion_meta" in update
        ]
    assert (frames[0][1], frames[-1]) == ("Hello~", (1.0, "Hello, world!"))


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"temperature": 5.0}, 400, "invalid_value"),
        ({"messages": []}, 400, "invalid_value"),
        ({"messages": [azure.UserMessage("x" * 5000)]}, 400, "context_length_exceeded"),
        ({"model": "other"}, 404, "model_not_found"),
    ],
)
def test_it_reads_our_errors(url: str, change: dict[str, Any], status: int, code: str) -> None:
    with ChatCompletionsClient(url, KEY) as client:
        for stream in (False, True):
            with pytest.raises(HttpResponseError) as error:
                client.complete(**{"messages": QUESTION, "stream": stream, **change})
            assert (error.value.status_code, error.value.error.code) == (status, code)
            assert error.value.error.message


def test_an_unknown_deployment_is_not_found(url: str) -> None:
    with ChatCompletionsClient(f"{url}/openai/deployments/other", KEY) as client:
        with pytest.raises(ResourceNotFoundError, match="'other' not found"):
            client.complete(messages=QUESTION)
        with pytest.raises(ResourceNotFoundError, match="'other' not found"):
            client.get_model_info()


@pytest.mark.anyio
async def test_the_asynchronous_client_does_the_same(url: str, backend: FakeBackend) -> None:
    async with AsyncChatCompletionsClient(f"{url}/models", KEY) as client:
        assert (await client.get_model_info()).model_name == MODEL.id
        whole = await client.complete(messages=QUESTION)
        assert whole.choices[0].message.content == "Hello, world!"
        stream = await client.complete(messages=QUESTION, stream=True)
        told = [choice.delta.content or "" async for update in stream for choice in update.choices]
        assert "".join(told) == "Hello, world!"
        backend.words = tuple(CALL)
        called = await client.complete(messages=QUESTION, tools=[TOOL])
        assert called.choices[0].message.tool_calls[0].function.name == "f"
        with pytest.raises(HttpResponseError):
            await client.complete(messages=QUESTION, temperature=5.0)


def test_openais_client_for_azure_names_the_model_in_the_path(url: str) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=url, api_key="any", api_version="2024-10-21", max_retries=0
    ) as client:
        chat = client.chat.completions
        assert chat.create(model=MODEL.id, messages=ASKED).choices[0].message.content == "Hello, world!"
        told = [
            choice.delta.content or ""
            for chunk in chat.create(model=MODEL.id, messages=ASKED, stream=True)
            for choice in chunk.choices
        ]
        assert "".join(told) == "Hello, world!"
        assert client.completions.create(model=MODEL.id, prompt="Once").choices[0].text == "Hello, world!"
        assert client.responses.create(model=MODEL.id, input="hi").output_text == "Hello, world!"
        with pytest.raises(openai.NotFoundError) as error:
            chat.create(model="other", messages=ASKED)
        assert error.value.code == "model_not_found"
    with openai.OpenAI(base_url=f"{url}/openai/v1/", api_key="any", max_retries=0) as client:
        reply = client.chat.completions.create(model=MODEL.id, messages=ASKED)
        assert reply.choices[0].message.content == "Hello, world!"


def test_a_machine_learning_endpoint_is_scored_and_probed(url: str) -> None:
    assert [httpx.get(f"{url}{probe}").status_code for probe in ("/", "/health", "/ready")] == [200] * 3
    assert httpx.post(f"{url}/score", json={"messages": ASKED}).json()["object"] == "chat.completion"
    assert httpx.post(f"{url}/score", json={"prompt": "a("}).json()["object"] == "text_completion"
    assert httpx.post(f"{url}/score", json={}).json()["error"]["code"] == "missing_required_parameter"
