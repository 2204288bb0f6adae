"""Anthropic's Messages API: text and tools."""

from __future__ import annotations

import json
import secrets
from typing import Any

from fastapi.responses import Response

from vermilion.errors import VermilionError
from vermilion.serving.generation import chat
from vermilion.serving.generation.choices import Choice, repeated
from vermilion.serving.generation.tool_calls import ArgumentsDelta, Piece, ToolCallStart, pieces_of
from vermilion.serving.generation.tools import Toolbox, read_calls
from vermilion.serving.http.error_rendering import anthropic_error
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import Route
from vermilion.serving.http.sse import EVENT_STREAM
from vermilion.serving.wire.anthropic_bodies import CountBody, MessagesBody
from vermilion.types import Event, Finish, Usage

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


def message_body(
    id: str, model: str, choice: Choice | None, usage: dict[str, Any], box: Toolbox | None = None
) -> dict[str, Any]:
    """The whole message, or without a choice how a stream begins it. `box` holds the tools it may call."""
    blocks: list[dict[str, Any]] = []
    reason = None
    if choice:
        text, calls = read_calls(choice.text, box)
        blocks = [{"type": "text", "text": text}] if text or not calls else []
        blocks += [{**_tool_use(call.id, call.name), "input": json.loads(call.arguments)} for call in calls]
        reason = _reason(choice.reason, len(calls), choice.stop_string)
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": reason,
        "stop_sequence": (choice.stop_string if choice else None) or None,
        **(repeated(choice) if choice else {}),
        "usage": usage,
    }


def _tool_use(id: str, name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": name, "input": {}}


def _reason(reason: str, num_calls: int, stop_string: str) -> str:
    if stop_string:
        return "stop_sequence"
    return "tool_use" if num_calls and reason == "stop" else _STOP_REASONS[reason]


def _usage_body(usage: Usage) -> dict[str, Any]:
    """Anthropic counts what the cache spared apart from the input."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


class MessageStream:
    """Named events: the message, its blocks of text and of calls, how it ended."""

    media_type = EVENT_STREAM
    keep_alive = b'event: ping\ndata: {"type": "ping"}\n\n'

    def __init__(self, id: str, model: str, num_prompt_tokens: int, box: Toolbox | None = None) -> None:
        start = message_body(id, model, None, _usage_body(Usage(prompt_tokens=num_prompt_tokens)))
        self._opening = _event("message_start", message=start)
        self._reader = box.reader() if box else None
        self._index = 0
        self._text_open = False
        if box is None:
            self._opening += self._open_text()

    def render(self, index: int, event: Event) -> bytes:
        content, self._opening = self._opening, b""
        for piece in pieces_of(event, self._reader):
            content += self._told(piece)
        if isinstance(event, Finish):
            num_calls = self._reader.num_calls if self._reader is not None else 0
            if not self._text_open and not self._index:
                content += self._open_text()
            reason = _reason(event.reason, num_calls, event.stop_string)
            delta = {"stop_reason": reason, "stop_sequence": event.stop_string or None, **repeated(event)}
            content += self._close_text()
            content += _event("message_delta", delta=delta, usage=_usage_body(event.usage))
        return content

    def _told(self, piece: Piece) -> bytes:
        if isinstance(piece, str):
            content = b"" if self._text_open else self._open_text()
            delta = {"type": "text_delta", "text": piece}
            return content + _event("content_block_delta", index=self._index, delta=delta)
        if isinstance(piece, ToolCallStart):
            block = _tool_use(piece.id, piece.name)
            content = self._close_text()
            return content + _event("content_block_start", index=self._index, content_block=block)
        if isinstance(piece, ArgumentsDelta):
            delta = {"type": "input_json_delta", "partial_json": piece.text}
            return _event("content_block_delta", index=self._index, delta=delta)
        self._index += 1
        return _event("content_block_stop", index=self._index - 1)

    def _open_text(self) -> bytes:
        self._text_open = True
        return _event("content_block_start", index=self._index, content_block={"type": "text", "text": ""})

    def _close_text(self) -> bytes:
        if not self._text_open:
            return b""
        self._text_open = False
        self._index += 1
        return _event("content_block_stop", index=self._index - 1)

    def close(self) -> bytes:
        return _event("message_stop")

    def fail(self, error: VermilionError) -> bytes:
        body = anthropic_error(error)
        return _event("error", error=body["error"])


def _event(name: str, **fields: object) -> bytes:
    content = json.dumps({"type": name, **fields}, ensure_ascii=False)
    return f"event: {name}\ndata: {content}\n\n".encode("utf-8", "replace")


async def messages(context: RequestContext, body: MessagesBody) -> Response:
    id = f"msg_{secrets.token_hex(12)}"
    asked = await context.offload(lambda: body.chat)
    requests = await chat.chat_requests(asked, context.served, context.service.config, id, body.begun)
    box = chat.toolbox(asked, context.service.config)
    name = context.answering(asked.model)
    if body.stream:
        num_prompt_tokens = len(requests[0].prompt)
        return context.stream(requests, MessageStream(id, name, num_prompt_tokens, box))
    (choice,) = await context.whole(requests)
    return json_response(message_body(id, name, choice, _usage_body(choice.usage), box))


async def count_tokens(context: RequestContext, body: CountBody) -> Response:
    asked = await context.offload(lambda: body.chat)
    count = await chat.num_prompt_tokens(asked, context.served, context.service.config, body.begun)
    return json_response({"input_tokens": count})


_QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
_EXAMPLE = Choice(texts=["The capital of France is Paris."], usage=Usage(24, 16, 9))
MESSAGES = operation(
    "anthropic",
    "Answer a conversation",
    'Text and tools. Errors have the shape `{"type": "error", "error": {"type", "message"}}`.',
    {"A question": {"max_tokens": 64, "messages": _QUESTION}},
    message_body("msg_4f2a", "smollm2-135m-diffusion", _EXAMPLE, _usage_body(_EXAMPLE.usage)),
    'event: content_block_delta\ndata: {"type": "content_block_delta", "index": 0, '
    '"delta": {"type": "text_delta", "text": "The capital of"}}\n\n',
)
COUNT = operation(
    "anthropic",
    "Count the tokens of a conversation",
    "With its tools and the chat template, as a message would use them, also of one that does not fit.",
    {"A question": {"messages": _QUESTION}},
    {"input_tokens": 37},
)


ROUTES = (
    Route("POST", "/v1/messages", messages, MESSAGES, MessagesBody),
    Route("POST", "/v1/messages/count_tokens", count_tokens, COUNT, CountBody),
)
