"""The official clients of Inception and Anthropic, strict about every type, over a real socket."""

from __future__ import annotations

from dataclasses import replace

import anthropic
import inceptionai
import pytest

from serving.fake import MODEL as FAKE_MODEL
from serving.fake import FakeBackend
from serving.running import running

TOOL = {"name": "f", "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}}}
pytestmark = pytest.mark.anyio
MODEL = "tiny-diffusion"
QUESTION = [{"role": "user", "content": "hi"}]


async def test_inceptions_client_lists_chats_diffuses_and_fills_gaps() -> None:
    async with (
        running(FakeBackend()) as server,
        inceptionai.AsyncInception(
            base_url=server.url, api_key="any", max_retries=0, _strict_response_validation=True
        ) as client,
    ):
        listed = [model.id for model in (await client.models.list()).data]
        assert listed[0] == MODEL and "mercury-3" in listed
        assert [model.id for model in (await client.models.list_chat()).data] == [MODEL]
        assert [model.id for model in (await client.models.list_edit()).data] == [MODEL]
        assert [model.id for model in (await client.models.list_fim()).data] == [MODEL]

        whole = await client.chat.completions.create(model=MODEL, messages=QUESTION)
        assert whole.choices[0].message.content == "Hello, world!"
        assert whole.usage.prompt_tokens_details.cached_tokens == 4
        stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
        texts = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
        assert "".join(texts) == "Hello, world!"
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            stream=True,
            diffusing=True,
            stream_options={"include_usage": True},
        )
        frames = [choice.delta.content async for chunk in stream for choice in chunk.choices]
        assert [frame for frame in frames if frame][-1] == "Hello, world!"

        region = (
            "<|current_file_content|>\n<|code_to_edit|>\nx<|cursor|>\n<|/code_to_edit|>\n"
            "<|/current_file_content|>\n<|edit_diff_history|>\n<|/edit_diff_history|>"
        )
        edited = await client.edit.completions.create(
            model="mercury-edit-2", messages=[{"role": "user", "content": region}], max_tokens=16
        )
        assert edited.choices[0].message.content == "```\nHello, world!\n```"

        gap = {"model": MODEL, "prompt": "a(", "suffix": ")"}
        filled = await client.fim.completions.create(**gap)
        assert (filled.choices[0].text, filled.usage.total_tokens) == ("Hello, world!", 6)
        stream = await client.fim.completions.create(**gap, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello, world!"

        with pytest.raises(inceptionai.NotFoundError):
            await client.chat.completions.create(model="other", messages=QUESTION)


async def test_anthropics_client_calls_tools() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    backend = FakeBackend(words=("Well. ", *call), model=replace(FAKE_MODEL, context_length=4096))
    async with (
        running(backend) as server,
        anthropic.AsyncAnthropic(
            base_url=server.url, api_key="any", max_retries=0, _strict_response_validation=True
        ) as client,
    ):
        asked = {"model": MODEL, "max_tokens": 512, "messages": QUESTION, "tools": [TOOL]}
        message = await client.messages.create(**asked, tool_choice={"type": "any"})
        async with client.messages.stream(**asked) as stream:
            streamed = await stream.get_final_message()
        for reply in (message, streamed):
            assert [block.type for block in reply.content] == ["text", "tool_use"]
            assert (reply.content[1].name, reply.content[1].input) == ("f", {"x": 1})
            assert reply.stop_reason == "tool_use"
        used = {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}
        result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "42"}]}
        turns = [*QUESTION, {"role": "assistant", "content": [used]}, {"role": "user", "content": [result]}]
        await client.messages.create(**{**asked, "messages": turns})
    assert backend.requests[0].grammar is not None
    assert backend.requests[1].grammar is None
    prompt = "".join(map(chr, backend.requests[2].prompt))
    assert '{"name": "f", "arguments": {"x": 1}}' in prompt
    assert "<tool_response>\n42\n</tool_response>" in prompt


async def test_anthropics_client_asks_streams_and_knows_our_errors() -> None:
    async with (
        running(FakeBackend()) as server,
        anthropic.AsyncAnthropic(
            base_url=server.url, api_key="any", max_retries=0, _strict_response_validation=True
        ) as client,
    ):
        asked = {"model": MODEL, "max_tokens": 64, "messages": QUESTION}
        message = await client.messages.create(**asked)
        assert (message.content[0].text, message.stop_reason) == ("Hello, world!", "end_turn")
        async with client.messages.stream(**asked) as stream:
            assert "".join([text async for text in stream.text_stream]) == "Hello, world!"
            final = await stream.get_final_message()
        assert (final.content[0].text, final.usage.output_tokens) == ("Hello, world!", 4)
        with pytest.raises(anthropic.BadRequestError, match="tool_choice"):
            await client.messages.create(**asked, tools=[TOOL], tool_choice={"type": "tool", "name": "g"})
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(**{**asked, "model": "other"})
