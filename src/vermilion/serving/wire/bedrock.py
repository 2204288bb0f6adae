"""Bedrock's Converse: whole answers, streams of settled text, and counting tokens."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from fastapi.responses import Response

from vermilion.errors import EngineFailure, VermilionError
from vermilion.serving.generation import chat
from vermilion.serving.generation.choices import Choice
from vermilion.serving.generation.cloud_names import cloud_model
from vermilion.serving.generation.tool_calls import ArgumentsDelta, Piece, ToolCallStart, pieces_of
from vermilion.serving.generation.tools import Toolbox, read_calls
from vermilion.serving.http.amazon_errors import bedrock_body, bedrock_type
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import Route
from vermilion.serving.wire.amazon_events import AMAZON_EVENT_STREAM, event_message, exception_message
from vermilion.serving.wire.anthropic_bodies import MessagesBody
from vermilion.serving.wire.bedrock_bodies import ConverseBody
from vermilion.serving.wire.openai_bodies import ChatBody
from vermilion.serving.wire.openai_replies import usage_body
from vermilion.types import Event, Finish, Usage

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}
_STREAM_EXCEPTIONS = (
    "InternalServerException",
    "ModelStreamErrorException",
    "ValidationException",
    "ThrottlingException",
    "ServiceUnavailableException",
)


def token_usage(usage: Usage) -> dict[str, int]:
    """Bedrock counts what the cache spared apart from the input."""
    return {
        "inputTokens": usage.prompt_tokens - usage.cached_tokens,
        "outputTokens": usage.completion_tokens,
        "totalTokens": usage.prompt_tokens + usage.completion_tokens,
        "cacheReadInputTokens": usage.cached_tokens,
        "cacheWriteInputTokens": 0,
    }


def milliseconds(begun_s: float, ended_s: float) -> int:
    return max(0, round((ended_s - begun_s) * 1000))


def _reason(reason: str, num_calls: int, stop_string: str) -> str:
    if stop_string:
        return "stop_sequence"
    return "tool_use" if num_calls and reason == "stop" else _STOP_REASONS[reason]


def asked_for(paths: Sequence[str], stop_string: str, usage: Usage) -> dict[str, Any]:
    """`additionalModelResponseFields`: what the JSON pointers in `paths` find, in the place where it was."""
    known = {"stop_sequence": stop_string or None, "usage": usage_body([usage])}
    found: dict[str, Any] = {}
    for path in paths:
        value: Any = known
        steps = path.split("/")[1:]
        for step in steps:
            value = value.get(step) if isinstance(value, dict) else None
        if value is not None and steps:
            place = found
            for step in steps[:-1]:
                place = place.setdefault(step, {})
            place[steps[-1]] = value
    return {"additionalModelResponseFields": found} if paths else {}


def converse_body(choice: Choice, box: Toolbox | None, paths: Sequence[str] = ()) -> dict[str, Any]:
    """The whole answer. `box` holds the tools it may call."""
    text, calls = read_calls(choice.text, box)
    blocks: list[dict[str, Any]] = [{"text": text}] if text or not calls else []
    for call in calls:
        used = {"toolUseId": call.id, "name": call.name, "input": json.loads(call.arguments)}
        blocks.append({"toolUse": used})
    return {
        "output": {"message": {"role": "assistant", "content": blocks}},
        "stopReason": _reason(choice.reason, len(calls), choice.stop_string),
        "usage": token_usage(choice.usage),
        "metrics": {"latencyMs": milliseconds(choice.started_s, choice.ended_s)},
        **asked_for(paths, choice.stop_string, choice.usage),
    }


class ConverseStream:
    """Text and the arguments of calls as they settle. Deltas only append, so no canvas is shown."""

    media_type = AMAZON_EVENT_STREAM
    keep_alive = b""

    def __init__(self, box: Toolbox | None = None, paths: Sequence[str] = ()) -> None:
        self._opening = _told("messageStart", role="assistant")
        self._reader = box.reader() if box else None
        self._paths = paths
        self._index = 0
        self._text_open = False
        self._begun_s = perf_counter()

    def render(self, index: int, event: Event) -> bytes:
        content, self._opening = self._opening, b""
        for piece in pieces_of(event, self._reader):
            content += self._piece(piece)
        return content + self._ended(event) if isinstance(event, Finish) else content

    def _piece(self, piece: Piece) -> bytes:
        if isinstance(piece, str):
            self._text_open = True
            return self._delta({"text": piece})
        if isinstance(piece, ToolCallStart):
            start = {"toolUse": {"toolUseId": piece.id, "name": piece.name}}
            return self._close_text() + _told("contentBlockStart", start=start, contentBlockIndex=self._index)
        if isinstance(piece, ArgumentsDelta):
            return self._delta({"toolUse": {"input": piece.text}})
        self._index += 1
        return _told("contentBlockStop", contentBlockIndex=self._index - 1)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _told("contentBlockDelta", delta=delta, contentBlockIndex=self._index)

    def _close_text(self) -> bytes:
        if not self._text_open:
            return b""
        self._text_open = False
        self._index += 1
        return _told("contentBlockStop", contentBlockIndex=self._index - 1)

    def _ended(self, event: Finish) -> bytes:
        num_calls = self._reader.num_calls if self._reader is not None else 0
        content = b""
        if not self._text_open and not self._index:
            content = self._piece("")
        reason = _reason(event.reason, num_calls, event.stop_string)
        more = asked_for(self._paths, event.stop_string, event.usage)
        content += self._close_text() + _told("messageStop", stopReason=reason, **more)
        metrics = {"latencyMs": milliseconds(self._begun_s, perf_counter())}
        return content + _told("metadata", usage=token_usage(event.usage), metrics=metrics)

    def close(self) -> bytes:
        return b""

    def fail(self, error: VermilionError) -> bytes:
        return stream_exception(error)


def stream_exception(error: VermilionError) -> bytes:
    """The event that ends a stream which cannot go on, of a type that streams know."""
    kind = "ModelStreamErrorException" if isinstance(error, EngineFailure) else bedrock_type(error)
    if kind not in _STREAM_EXCEPTIONS:
        kind = "ModelStreamErrorException"
    body = json.dumps(bedrock_body(error, kind)).encode()
    return exception_message(kind[:1].lower() + kind[1:], body)


def _told(kind: str, **fields: object) -> bytes:
    return event_message(kind, json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class _Asked:
    """A body of Converse in the terms of the rest of the service."""

    chat: ChatBody
    anthropic: MessagesBody


async def _asked(context: RequestContext, id: str, body: ConverseBody) -> _Asked:
    """Raises `BadRequest` and `ModelNotFound`."""
    name = cloud_model(id, context.model, context.service.config)

    def work() -> _Asked:
        anthropic = body.messages_body
        return _Asked(body.chat(anthropic).model_copy(update={"model": name}), anthropic)

    return await context.offload(work)


async def converse(context: RequestContext, body: ConverseBody, id: str) -> Response:
    return await _answer(context, id, body, stream=False)


async def converse_stream(context: RequestContext, body: ConverseBody, id: str) -> Response:
    return await _answer(context, id, body, stream=True)


async def _answer(context: RequestContext, id: str, body: ConverseBody, stream: bool) -> Response:
    asked = await _asked(context, id, body)
    config, request_id = context.service.config, f"converse-{secrets.token_hex(12)}"
    requests = await chat.chat_requests(asked.chat, context.served, config, request_id, asked.anthropic.begun)
    box = chat.toolbox(asked.chat, config)
    paths = body.additional_model_response_field_paths or ()
    if stream:
        return context.stream(requests, ConverseStream(box, paths))
    (choice,) = await context.whole(requests)
    return json_response(converse_body(choice, box, paths))


async def conversation_tokens(context: RequestContext, id: str, body: ConverseBody) -> int:
    """How many a conversation comes to, also one that does not fit."""
    asked = await _asked(context, id, body)
    config = context.service.config
    return await chat.num_prompt_tokens(asked.chat, context.served, config, asked.anthropic.begun)


_QUESTION = [{"role": "user", "content": [{"text": "What is the capital of France?"}]}]
_EXAMPLE = Choice(texts=["The capital of France is Paris."], usage=Usage(24, 16, 9))
CONVERSE = operation(
    "amazon",
    "Answer a conversation",
    "Text, documents that are text, and tools. The id is a model's name or ARN. Errors have Amazon's types "
    'in `x-amzn-ErrorType` and the shape `{"message"}`.',
    {"A question": {"messages": _QUESTION, "inferenceConfig": {"maxTokens": 64}}},
    converse_body(_EXAMPLE, None),
)
CONVERSE_STREAM = operation(
    "amazon",
    "Answer a conversation as a stream",
    "Messages of Amazon's event stream: messageStart, contentBlockStart, contentBlockDelta, "
    "contentBlockStop, messageStop, metadata. Only settled text; canvases come from "
    "invoke-with-response-stream.",
    {"A question": {"messages": _QUESTION}},
    None,
)


ROUTES = (
    Route("POST", "/model/{id:path}/converse", converse, CONVERSE, ConverseBody),
    Route("POST", "/model/{id:path}/converse-stream", converse_stream, CONVERSE_STREAM, ConverseBody),
)
