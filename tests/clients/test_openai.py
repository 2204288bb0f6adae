"""OpenAI's Python client and its Azure face, strict about every type."""

from __future__ import annotations

import openai
import pytest
from openai import AsyncOpenAI, AzureOpenAI, OpenAI
from pydantic import BaseModel

from clients.conftest import Proven
from clients.running import MODEL, Running

pytestmark = [pytest.mark.model, pytest.mark.slow]
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
CHAT = {"model": MODEL, "messages": QUESTION, "max_tokens": 24}
GAP = {"model": MODEL, "prompt": "def add(a, b):\n    return ", "suffix": "\n", "max_tokens": 8}


class Capital(BaseModel):
    city: str


class SetVolume(BaseModel):
    level: int


@pytest.fixture(scope="module")
def client(service: Running) -> OpenAI:
    return OpenAI(base_url=service.v1, api_key="unused", max_retries=0, _strict_response_validation=True)


def test_chat_comes_whole_streamed_and_parsed(client: OpenAI, proven: Proven) -> None:
    whole = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2, seed=1)
    answer = whole.choices[0].message.content
    assert "Paris" in answer
    assert "".join(token.token for token in whole.choices[0].logprobs.content) == answer
    stream = client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    told = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(told) == answer
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    parsed = client.chat.completions.parse(**CHAT, response_format=Capital)
    assert isinstance(parsed.choices[0].message.parsed, Capital)
    with client.chat.completions.stream(**CHAT, response_format=Capital) as helper:
        for _ in helper:
            pass
        assert helper.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed
    proven("openai (Python)", openai.__version__, "chat: create, stream, parse, stream helper (strict)")


def test_a_tool_is_called_with_typed_arguments(client: OpenAI, proven: Proven) -> None:
    tool = openai.pydantic_function_tool(SetVolume, name="set_volume")
    asked = {**CHAT, "max_tokens": 64, "tools": [tool], "tool_choice": "required"}
    (call, *_) = client.chat.completions.parse(**asked).choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, SetVolume)
    with client.chat.completions.stream(**asked, parallel_tool_calls=False) as stream:
        kinds = {event.type for event in stream}
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
    assert "tool_calls.function.arguments.done" in kinds
    assert isinstance(streamed.function.parsed_arguments, SetVolume)
    proven("openai (Python)", openai.__version__, "chat: a required strict tool, whole and streamed")


def test_completions_fill_gaps(client: OpenAI, proven: Proven) -> None:
    whole = client.completions.create(**GAP, logprobs=1)
    # The type that it reads these chunks as has no place for the null reason that OpenAI itself sends.
    lenient = OpenAI(base_url=client.base_url, api_key="unused", max_retries=0)
    pieces = lenient.completions.create(**GAP, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    proven("openai (Python)", openai.__version__, "completions: create with suffix (strict), stream")


def test_responses_come_whole_streamed_and_parsed(client: OpenAI, proven: Proven) -> None:
    asked = {"model": MODEL, "input": QUESTION, "max_output_tokens": 24}
    whole = client.responses.create(**asked)
    assert (whole.status, "Paris" in whole.output_text) == ("completed", True)
    with client.responses.stream(**asked) as stream:
        told = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert stream.get_final_response().output_text == "".join(told) == whole.output_text
    parsed = client.responses.parse(**asked, text_format=Capital)
    assert isinstance(parsed.output_parsed, Capital)
    tool = openai.pydantic_function_tool(SetVolume, name="set_volume")["function"]
    tools = [{"type": "function", "name": tool["name"], "parameters": tool["parameters"], "strict": True}]
    calling = {**asked, "max_output_tokens": 64, "tools": tools, "parallel_tool_calls": False}
    (call,) = client.responses.create(**calling, tool_choice="required").output
    assert isinstance(SetVolume.model_validate_json(call.arguments), SetVolume)
    proven(
        "openai (Python)", openai.__version__, "responses: create, stream, parse, a required tool (strict)"
    )


def test_questions_are_decided(client: OpenAI, proven: Proven) -> None:
    questions = [
        {"type": "predicate", "name": "kind", "instructions": "The text is kind."},
        {"type": "choice", "instructions": "Polite?", "choices": [{"value": True}, {"value": False}]},
        {"type": "score", "instructions": "How happy?", "levels": [{"label": "low"}, {"label": "high"}]},
    ]
    decided = client.decisions.create(model=MODEL, input="Thank you so much!", questions=questions)
    kind, polite, happy = decided.answers
    assert 0 <= kind.probability <= 1
    assert polite.choice in (True, False)
    assert [level.label for level in happy.probabilities] == ["low", "high"]
    proven("openai (Python)", openai.__version__, "decisions: predicate, choice, score (strict)")


def test_models_are_listed_and_what_is_not_here_is_said_clearly(client: OpenAI, proven: Proven) -> None:
    listed = [model.id for model in client.models.list()]
    assert listed[0] == MODEL and "mercury" in listed
    assert client.models.retrieve("mercury").id == "mercury"
    with pytest.raises(openai.InternalServerError, match="not trained to give vectors"):
        client.embeddings.create(model=MODEL, input="x")
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.chat.completions.create(**{**CHAT, "model": "other"})
    proven("openai (Python)", openai.__version__, "models: list, retrieve; embeddings: a clear 501")


@pytest.mark.anyio
async def test_the_asynchronous_client_does_the_same(service: Running, proven: Proven) -> None:
    async with AsyncOpenAI(
        base_url=service.v1, api_key="unused", max_retries=0, _strict_response_validation=True
    ) as client:
        whole = await client.chat.completions.create(**CHAT)
        stream = await client.chat.completions.create(**CHAT, stream=True)
        told = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
        assert "".join(told) == whole.choices[0].message.content
        parsed = await client.chat.completions.parse(**CHAT, response_format=Capital)
        assert isinstance(parsed.choices[0].message.parsed, Capital)
    proven("openai (Python)", openai.__version__, "asynchronous: chat, stream, parse (strict)")


def test_azures_client_names_the_model_in_the_path(service: Running, proven: Proven) -> None:
    client = AzureOpenAI(
        azure_endpoint=service.url,
        api_key="unused",
        api_version="2024-10-21",
        max_retries=0,
        _strict_response_validation=True,
    )
    whole = client.chat.completions.create(**CHAT)
    assert "Paris" in whole.choices[0].message.content
    stream = client.chat.completions.create(**CHAT, stream=True)
    told = [choice.delta.content or "" for chunk in stream for choice in chunk.choices]
    assert "".join(told) == whole.choices[0].message.content
    assert client.completions.create(**GAP).choices[0].text
    proven("openai (Python), AzureOpenAI", openai.__version__, "chat: create, stream; completions (strict)")
