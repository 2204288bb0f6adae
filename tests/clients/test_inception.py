"""Inception's own Python client, strict about every type, on every resource it has."""

from __future__ import annotations

import inceptionai
import pytest
from inceptionai import AsyncInception, Inception
from pydantic import BaseModel

from clients.conftest import Proven
from clients.running import MODEL, Running

pytestmark = [pytest.mark.model, pytest.mark.slow]
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "set_volume",
        "description": "Set the volume of the radio",
        "parameters": {
            "type": "object",
            "properties": {"level": {"type": "integer", "enum": [1, 2, 3]}},
            "required": ["level"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
REGION = (
    "<|recently_viewed_code_snippets|>\n\n<|/recently_viewed_code_snippets|>\n\n"
    "<|current_file_content|>\ncurrent_file_path: a.py\n<|code_to_edit|>\ncount = 1<|cursor|>\n"
    "<|/code_to_edit|>\n<|/current_file_content|>\n\n<|edit_diff_history|>\n\n<|/edit_diff_history|>"
)
GAP = {"model": "mercury-edit-2", "prompt": "def add(a, b):\n    return ", "suffix": "\n", "max_tokens": 8}


DECIDE = {
    "model": "mercury-decide",
    "state": "Thank you so much!",
    "questions": {
        "kind": {"type": "noul", "instructions": "Is the text kind?"},
        "tone": {"type": "choice", "criteria": {"warm": "friendly words", "cold": None}},
        "stars": {"type": "score", "instructions": "How happy?", "criteria": ["not at all", "very"]},
    },
}


class Capital(BaseModel):
    city: str


@pytest.fixture(scope="module")
def client(service: Running) -> Inception:
    return Inception(base_url=service.url, api_key="unused", max_retries=0, _strict_response_validation=True)


def test_every_list_of_models_is_read_strictly(client: Inception, proven: Proven) -> None:
    listed = [model.id for model in client.models.list().data]
    assert listed[0] == MODEL and "mercury-2" in listed
    for models in (client.models.list_chat(), client.models.list_fim()):
        assert [model.id for model in models.data] == [MODEL]
    (model,) = client.models.list_edit().data
    assert "edit.completions" in model.supported_endpoints
    assert float(model.pricing.completion) >= 0
    proven("inceptionai", inceptionai.__version__, "models: list, list_chat, list_fim, list_edit (strict)")


def test_chat_comes_whole_streamed_and_parsed(client: Inception, proven: Proven) -> None:
    asked = {"model": "mercury-2", "messages": QUESTION, "max_tokens": 24}
    whole = client.chat.completions.create(**asked, reasoning_effort="medium", reasoning_summary=True)
    answer = whole.choices[0].message.content
    assert "Paris" in answer
    assert whole.usage.completion_tokens_details.reasoning_tokens == 0
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    told = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(told) == answer
    assert chunks[-1].usage["total_tokens"] == whole.usage.total_tokens
    with client.chat.completions.stream(**asked) as helper:
        for _ in helper:
            pass
        assert helper.get_final_completion().choices[0].message.content == answer
    parsed = client.chat.completions.parse(**asked, response_format=Capital)
    assert isinstance(parsed.choices[0].message.parsed, Capital)
    proven("inceptionai", inceptionai.__version__, "chat: create, stream, stream helper, parse (strict)")


def test_the_canvas_replaces_and_ends_in_the_answer(client: Inception, proven: Proven) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 24}
    answer = client.chat.completions.create(**asked).choices[0].message.content
    stream = client.chat.completions.create(**asked, stream=True, diffusing=True)
    frames = [choice.delta.content for chunk in stream for choice in chunk.choices if choice.delta.content]
    assert len(frames) > 2
    assert frames[-1] == answer
    proven("inceptionai", inceptionai.__version__, "chat: diffusing, whole frames that replace")


def test_a_named_tool_is_called_and_answered(client: Inception, proven: Proven) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 64, "tools": [TOOL]}
    choice = client.chat.completions.create(
        **asked, tool_choice={"type": "function", "function": {"name": "set_volume"}}
    ).choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "set_volume")
    alone = {"extra_body": {"parallel_tool_calls": False}}
    with client.chat.completions.stream(**asked, tool_choice="required", **alone) as stream:
        for _ in stream:
            pass
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed.function.name == "set_volume"
    turns = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump(exclude_none=True)]},
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]
    told = client.chat.completions.create(model=MODEL, messages=turns, tools=[TOOL], max_tokens=8)
    assert told.choices[0].message.role == "assistant"
    proven("inceptionai", inceptionai.__version__, "chat: named and required tools, streamed, answered")


def test_gaps_are_filled_and_edits_predicted(client: Inception, proven: Proven) -> None:
    filled = client.fim.completions.create(**GAP)
    assert filled.choices[0].text
    stream = client.fim.completions.create(**GAP, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == filled.choices[0].text
    edited = client.edit.completions.create(
        model="mercury-edit-2", messages=[{"role": "user", "content": REGION}], max_tokens=8
    )
    content = edited.choices[0].message.content
    assert content == "None" or (content.startswith("```\n") and content.endswith("\n```"))
    proven("inceptionai", inceptionai.__version__, "fim: create, stream; edit: create (strict)")


def test_questions_are_decided(client: Inception, proven: Proven) -> None:
    answers = client.decisions.create(**DECIDE).answers
    assert 0 <= answers["kind"].noul <= 1
    assert set(answers["tone"].probabilities) == {"warm", "cold"}
    assert sum(answers["stars"].probabilities.values()) == pytest.approx(1)
    proven("inceptionai", inceptionai.__version__, "decisions: noul, choice, score (strict)")


def test_refusals_are_errors_the_client_knows(client: Inception) -> None:
    with pytest.raises(inceptionai.NotFoundError, match="not found"):
        client.chat.completions.create(model="other", messages=QUESTION)
    with pytest.raises(inceptionai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=9)


@pytest.mark.anyio
async def test_the_asynchronous_client_does_the_same(service: Running, proven: Proven) -> None:
    async with AsyncInception(
        base_url=service.url, api_key="unused", max_retries=0, _strict_response_validation=True
    ) as client:
        assert (await client.models.list()).data[0].id == MODEL
        for listing in (client.models.list_chat, client.models.list_fim):
            assert [model.id for model in (await listing()).data] == [MODEL]
        asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 24}
        whole = await client.chat.completions.create(**asked)
        async with client.chat.completions.stream(**asked) as stream:
            async for _ in stream:
                pass
            final = stream.get_final_completion()
        assert final.choices[0].message.content == whole.choices[0].message.content
        parsed = await client.chat.completions.parse(**asked, response_format=Capital)
        assert isinstance(parsed.choices[0].message.parsed, Capital)
        assert (await client.fim.completions.create(**GAP)).choices[0].text
        pieces = [piece async for piece in await client.fim.completions.create(**GAP, stream=True)]
        assert pieces[-1].choices[0].finish_reason in ("stop", "length")
        region = [{"role": "user", "content": REGION}]
        edited = await client.edit.completions.create(model=MODEL, messages=region, max_tokens=8)
        assert edited.choices[0].message.content
        assert (await client.decisions.create(**DECIDE)).answers["tone"].choice in ("warm", "cold")
    what = "asynchronous: models, chat, parse, fim, edit, decisions (strict)"
    proven("inceptionai", inceptionai.__version__, what)
