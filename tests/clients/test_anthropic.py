"""Anthropic's Python client, strict about every type."""

from __future__ import annotations

import anthropic
import pytest

from clients.conftest import Proven
from clients.running import MODEL, Running

pytestmark = [pytest.mark.model, pytest.mark.slow]
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
ASKED = {"model": MODEL, "max_tokens": 24, "messages": QUESTION}
TOOL = {
    "name": "set_volume",
    "description": "Set the volume of the radio",
    "input_schema": {
        "type": "object",
        "properties": {"level": {"type": "integer", "enum": [1, 2, 3]}},
        "required": ["level"],
    },
}


@pytest.fixture(scope="module")
def client(service: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=service.url, api_key="unused", max_retries=0, _strict_response_validation=True
    )


def test_messages_come_whole_and_streamed(client: anthropic.Anthropic, proven: Proven) -> None:
    whole = client.messages.create(**ASKED, system="Be brief.", stop_sequences=["\n\n"])
    assert "Paris" in whole.content[0].text
    with client.messages.stream(**ASKED, system="Be brief.") as stream:
        told = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert told == final.content[0].text == whole.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens
    proven("anthropic", anthropic.__version__, "messages: create, stream (strict)")


def test_a_tool_is_used_and_its_result_read(client: anthropic.Anthropic, proven: Proven) -> None:
    asked = {**ASKED, "max_tokens": 64, "tools": [TOOL]}
    message = client.messages.create(**asked, tool_choice={"type": "tool", "name": "set_volume"})
    (used,) = (block for block in message.content if block.type == "tool_use")
    assert (message.stop_reason, used.name) == ("tool_use", "set_volume")
    assert used.input["level"] in (1, 2, 3)
    any_one = {"type": "any", "disable_parallel_tool_use": True}
    with client.messages.stream(**asked, tool_choice=any_one) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_message().stop_reason == "tool_use"
    assert "input_json" in kinds
    result = {"type": "tool_result", "tool_use_id": used.id, "content": "done"}
    turns = [
        *QUESTION,
        {"role": "assistant", "content": [used.model_dump(include={"type", "id", "name", "input"})]},
        {"role": "user", "content": [result]},
    ]
    assert client.messages.create(**{**asked, "messages": turns, "max_tokens": 8}).role == "assistant"
    proven("anthropic", anthropic.__version__, "messages: named and any tool, streamed, result sent back")


def test_tokens_are_counted(client: anthropic.Anthropic, proven: Proven) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=QUESTION, system="Be brief.")
    used = client.messages.create(**ASKED, system="Be brief.").usage
    assert counted.input_tokens == used.input_tokens + used.cache_read_input_tokens
    proven("anthropic", anthropic.__version__, "messages: count_tokens, equal to what a message uses")
