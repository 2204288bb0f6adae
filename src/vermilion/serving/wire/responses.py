"""OpenAI's Responses API: one reply of items, whole or as named events. Nothing is stored."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from fastapi.responses import Response

from vermilion.errors import VermilionError
from vermilion.serving.generation import chat
from vermilion.serving.generation.choices import Choice
from vermilion.serving.generation.tool_calls import ArgumentsDelta, Piece, ToolCall, ToolCallStart
from vermilion.serving.generation.tools import Toolbox, read_calls
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import Route
from vermilion.serving.http.sse import EVENT_STREAM
from vermilion.serving.wire.responses_bodies import ResponsesBody
from vermilion.types import Event, Finish, Text, Usage


def response_body(
    base: dict[str, Any], output: list[dict[str, Any]], finish: Finish | None
) -> dict[str, Any]:
    """The whole response; without `finish` as a stream begins it."""
    status = "in_progress" if finish is None else "incomplete" if finish.reason == "length" else "completed"
    details = {"reason": "max_output_tokens"} if status == "incomplete" else None
    usage = _usage(finish.usage) if finish else None
    return {**base, "status": status, "incomplete_details": details, "output": output, "usage": usage}


def settings(id: str, model: str, body: ResponsesBody) -> dict[str, Any]:
    """What a response repeats of its request."""
    given = body.model_dump(by_alias=True)
    form = (given["text"] or {}).get("format") or {"type": "text"}
    return {
        "id": id,
        "object": "response",
        "created_at": int(time.time()),
        "error": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "store": False,
        "temperature": body.temperature or 0.0,
        "text": {"format": {name: value for name, value in form.items() if value is not None}},
        "tool_choice": given["tool_choice"] or "auto",
        "tools": [{"strict": None, "parameters": None, **tool} for tool in given["tools"] or ()],
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message(id: str, text: str | None, status: str = "completed") -> dict[str, Any]:
    content = [] if text is None else [_part(text)]
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": content}


def _call(id: str, name: str, arguments: str, status: str = "completed") -> dict[str, Any]:
    return {
        "id": f"fc_{id}",
        "type": "function_call",
        "call_id": id,
        "name": name,
        "arguments": arguments,
        "status": status,
    }


def output_of(choice: Choice, box: Toolbox | None) -> list[dict[str, Any]]:
    """The items of a finished answer."""
    text, calls = read_calls(choice.text, box)
    status = "incomplete" if choice.reason == "length" else "completed"
    items = [_message(_new("msg"), text, status)] if text or not calls else []
    return items + [_call(call.id, call.name, call.arguments) for call in calls]


def _new(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"


class ResponseStream:
    """Named events, numbered: the response, its items as they grow, the response as it ended."""

    media_type = EVENT_STREAM
    keep_alive = b""

    def __init__(self, base: dict[str, Any], box: Toolbox | None) -> None:
        self._base = base
        self._reader = box.reader() if box else None
        self._number = 0
        self._begun = False
        self._output: list[dict[str, Any]] = []
        self._open = ""
        """Id of the message being written."""
        self._called = ""
        """Id of the last call."""
        self._text: list[str] = []

    def render(self, index: int, event: Event) -> bytes:
        content = b"" if self._begun else self._begin()
        text = event.text if isinstance(event, Text) else ""
        pieces: list[Piece] = [text] if text else []
        if self._reader is not None:
            pieces = self._reader.push(text)
            pieces += self._reader.finish() if isinstance(event, Finish) else []
        for piece in pieces:
            content += self._write(piece) if isinstance(piece, str) else self._tell(piece)
        if isinstance(event, Finish):
            if not self._open and not self._output:
                content += self._write("")
            content += self._close("incomplete" if event.reason == "length" else "completed")
            whole = response_body(self._base, self._output, event)
            content += self._event(f"response.{whole['status']}", response=whole)
        return content

    def _begin(self) -> bytes:
        self._begun = True
        first = response_body(self._base, [], None)
        return self._event("response.created", response=first) + self._event(
            "response.in_progress", response=first
        )

    def _write(self, text: str) -> bytes:
        content, at = b"", len(self._output)
        if not self._open:
            self._open, self._text = _new("msg"), []
            item = _message(self._open, None, "in_progress")
            content += self._event("response.output_item.added", output_index=at, item=item)
            content += self._event("response.content_part.added", **self._place, part=_part(""))
        self._text.append(text)
        if text:
            content += self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])
        return content

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._open, "output_index": len(self._output), "content_index": 0}

    def _close(self, status: str) -> bytes:
        if not self._open:
            return b""
        text = "".join(self._text)
        content = self._event("response.output_text.done", **self._place, text=text, logprobs=[])
        content += self._event("response.content_part.done", **self._place, part=_part(text))
        return content + self._done(_message(self._open, text, status))

    def _done(self, item: dict[str, Any]) -> bytes:
        at, self._open = len(self._output), ""
        self._output.append(item)
        return self._event("response.output_item.done", output_index=at, item=item)

    def _tell(self, piece: ToolCallStart | ArgumentsDelta | ToolCall) -> bytes:
        kind, at = "response.function_call_arguments", len(self._output)
        if isinstance(piece, ToolCallStart):
            content = self._close("completed")
            at, self._called = len(self._output), f"fc_{piece.id}"
            item = _call(piece.id, piece.name, "", "in_progress")
            return content + self._event("response.output_item.added", output_index=at, item=item)
        place: dict[str, Any] = {"item_id": self._called, "output_index": at}
        if isinstance(piece, ArgumentsDelta):
            return self._event(f"{kind}.delta", **place, delta=piece.text)
        content = self._event(f"{kind}.done", **place, name=piece.name, arguments=piece.arguments)
        status = "completed" if piece.whole else "incomplete"
        return content + self._done(_call(piece.id, piece.name, piece.arguments, status))

    def close(self) -> bytes:
        return b""

    def fail(self, error: VermilionError) -> bytes:
        failed = response_body(self._base, self._output, None)
        failed |= {"status": "failed", "error": {"code": "server_error", "message": str(error)}}
        return self._event("response.failed", response=failed)

    def _event(self, kind: str, /, **fields: object) -> bytes:
        content = json.dumps({"type": kind, "sequence_number": self._number, **fields}, ensure_ascii=False)
        self._number += 1
        return f"event: {kind}\ndata: {content}\n\n".encode("utf-8", "replace")


async def responses(context: RequestContext, body: ResponsesBody) -> Response:
    asked, id = body.chat, _new("resp")
    requests = await chat.chat_requests(asked, context.served, context.service.config, id)
    box = chat.toolbox(asked, context.service.config)
    base = settings(id, context.answering(asked.model), body)
    if body.stream:
        return context.stream(requests, ResponseStream(base, box))
    (choice,) = await context.whole(requests)
    finish = Finish(choice.reason, choice.usage)
    return json_response(response_body(base, output_of(choice, box), finish))


_ASKED = ResponsesBody.model_validate({"input": "What is the capital of France?"})
RESPONSES = operation(
    "generation",
    "Answer as a list of items",
    "OpenAI's newer shape: text and function calls. Nothing is stored, so `previous_response_id` is refused.",
    {"A question": {"input": "What is the capital of France?", "max_output_tokens": 64}},
    response_body(
        settings("resp_4f2a", "smollm2-135m-diffusion", _ASKED),
        [_message("msg_4f2a", "The capital of France is Paris.")],
        Finish("stop", Usage(37, 16, 8)),
    ),
    'event: response.output_text.delta\ndata: {"type": "response.output_text.delta", "sequence_number": 4, '
    '"item_id": "msg_4f2a", "output_index": 0, "content_index": 0, "delta": "The capital of"}\n\n',
)


ROUTES = (Route("POST", "/v1/responses", responses, RESPONSES, ResponsesBody),)
