"""Anthropic's Messages API, for text."""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, Field, FiniteFloat

from vermilion.errors import BadRequest, VermilionError
from vermilion.serving import chat
from vermilion.serving.call import Call, json_response
from vermilion.serving.description import operation
from vermilion.serving.errors import anthropic_error
from vermilion.serving.openai import MOST_STOPS, WIRE, ChatBody, Message, TextPart, flatten_content
from vermilion.serving.replies import Choice
from vermilion.serving.service import Service
from vermilion.serving.sse import EVENT_STREAM
from vermilion.types import Event, Finish, Text, Usage

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}
_Content = Annotated[str, BeforeValidator(flatten_content, json_schema_input_type=str | list[TextPart])]


class Turn(BaseModel):
    model_config = WIRE

    role: Literal["user", "assistant"]
    content: _Content = Field(description="A string or a list of text blocks.")


class MessagesBody(BaseModel):
    """Body of POST /v1/messages."""

    model_config = WIRE

    model: str | None = Field(None, description="Id or alias of a served model; the only one if left out.")
    max_tokens: int = Field(ge=1, description="Longest answer; cut to what fits.")
    messages: list[Turn] = Field(
        min_length=1, description="The conversation; the model goes on from a last message of the assistant."
    )
    system: _Content = Field("", description="A string or a list of text blocks.")
    stop_sequences: list[str] | None = Field(
        None, max_length=MOST_STOPS, description="The answer ends before any of these strings."
    )
    temperature: FiniteFloat | None = Field(None, ge=0, le=2, description="0, the default, is exact.")
    top_p: FiniteFloat | None = Field(None, ge=0, le=1, description="Sample from this share of probability.")
    top_k: int | None = Field(None, ge=-1, description="Sample from so many tokens; 0 or -1: no limit.")
    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
    tools: list[Any] | None = Field(None, description="Refused: tools are not served here.")
    preset: str | None = Field(None, description="As in /v1/chat/completions.")
    decoding: dict[Annotated[str, Field(max_length=40)], Any] | None = Field(
        None, description="As in /v1/chat/completions."
    )

    @property
    def begun(self) -> str:
        """How the answer begins; empty unless the caller has put words in the model's mouth."""
        last = self.messages[-1]
        # The API forbids, and the model cannot use, white space at the end of it.
        return last.content.rstrip() if last.role == "assistant" else ""

    @property
    def chat(self) -> ChatBody:
        """The same in OpenAI's terms. Raises `BadRequest`."""
        if self.tools:
            raise BadRequest(
                "tools: this model cannot call tools; leave them out.", "tools", "unsupported_parameter"
            )
        turns = self.messages[:-1] if self.begun else self.messages
        messages = [Message(role="system", content=self.system)] if self.system else []
        messages += [Message(role=turn.role, content=turn.content) for turn in turns]
        return ChatBody.model_construct(
            messages=messages,
            stop=[stop for stop in self.stop_sequences or () if stop],
            **{
                name: getattr(self, name)
                for name in ("model", "max_tokens", "temperature", "top_p", "top_k", "preset", "decoding")
            },
        )


def message_body(id: str, model: str, choice: Choice | None, usage: dict[str, Any]) -> dict[str, Any]:
    """The whole message, or without a choice how a stream begins it."""
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": choice.text}] if choice else [],
        "stop_reason": _STOP_REASONS[choice.reason] if choice else None,
        "stop_sequence": None,
        "usage": usage,
    }


def _usage_body(usage: Usage) -> dict[str, Any]:
    """Anthropic counts what the cache spared apart from the input."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


class MessageStream:
    """Named events: the message, its one block of text as it settles, how it ended."""

    media_type = EVENT_STREAM
    keep_alive = b'event: ping\ndata: {"type": "ping"}\n\n'

    def __init__(self, id: str, model: str, num_prompt_tokens: int) -> None:
        start = message_body(id, model, None, _usage_body(Usage(prompt_tokens=num_prompt_tokens)))
        block = {"type": "text", "text": ""}
        self._opening = _event("message_start", message=start)
        self._opening += _event("content_block_start", index=0, content_block=block)

    def render(self, index: int, event: Event) -> bytes:
        content, self._opening = self._opening, b""
        if isinstance(event, Text) and event.text:
            delta: dict[str, Any] = {"type": "text_delta", "text": event.text}
            content += _event("content_block_delta", index=0, delta=delta)
        elif isinstance(event, Finish):
            delta = {"stop_reason": _STOP_REASONS[event.reason], "stop_sequence": None}
            content += _event("content_block_stop", index=0)
            content += _event("message_delta", delta=delta, usage=_usage_body(event.usage))
        return content

    def close(self) -> bytes:
        return _event("message_stop")

    def fail(self, error: VermilionError) -> bytes:
        body = anthropic_error(error)
        return _event("error", error=body["error"])


def _event(name: str, **fields: object) -> bytes:
    content = json.dumps({"type": name, **fields}, ensure_ascii=False)
    return f"event: {name}\ndata: {content}\n\n".encode("utf-8", "replace")


def add_routes(router: APIRouter, service: Service) -> None:
    @router.post("/v1/messages", **MESSAGES)
    async def messages(http: HttpRequest) -> Response:
        call = Call.admit(http, service)
        body = await call.body(MessagesBody)
        id = f"msg_{secrets.token_hex(12)}"
        requests = await chat.chat_requests(body.chat, call.served, service.config, id, body.begun)
        if body.stream:
            num_prompt_tokens = len(requests[0].prompt)
            return call.stream(requests, MessageStream(id, call.model.id, num_prompt_tokens))
        (choice,) = await call.whole(requests)
        return json_response(message_body(id, call.model.id, choice, _usage_body(choice.usage)))


_QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
_EXAMPLE = Choice(texts=["The capital of France is Paris."], usage=Usage(24, 16, 9))
MESSAGES = operation(
    "anthropic",
    "Answer a conversation",
    'Text only. Errors have the shape `{"type": "error", "error": {"type", "message"}}`.',
    ("MessagesBody", {"A question": {"max_tokens": 64, "messages": _QUESTION}}),
    message_body("msg_4f2a", "smollm2-135m-diffusion", _EXAMPLE, _usage_body(_EXAMPLE.usage)),
    'event: content_block_delta\ndata: {"type": "content_block_delta", "index": 0, '
    '"delta": {"type": "text_delta", "text": "The capital of"}}\n\n',
)
