"""Bedrock's InvokeModel: a body of any route of ours or of Anthropic's, the answer in its own form."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import replace
from time import perf_counter
from typing import Any

from fastapi.responses import Response
from pydantic_core import from_json

from vermilion.errors import BadRequest, VermilionError
from vermilion.serving.generation import chat
from vermilion.serving.generation.cloud_names import cloud_model
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.parsing import convert
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import Route
from vermilion.serving.http.sse import StreamRenderer
from vermilion.serving.wire.amazon_events import AMAZON_EVENT_STREAM, event_message
from vermilion.serving.wire.anthropic_bodies import CountBody
from vermilion.serving.wire.bedrock import conversation_tokens, milliseconds, stream_exception
from vermilion.serving.wire.bedrock_bodies import CountTokensBody, decoded
from vermilion.serving.wire.body_dispatch import AnyBody, dispatched, route_of
from vermilion.serving.wire.openai_bodies import ChatBody, CompletionBody
from vermilion.types import Event, Finish, Text, Usage

_HEADER = "x-amzn-bedrock-"
_CHAT = "/v1/chat/completions"


def sse_data(content: bytes) -> list[bytes]:
    """The data of server-sent events; nothing of OpenAI's last one, which says only that it is."""
    lines = (line for line in content.split(b"\n") if line.startswith(b"data: "))
    return [line[6:] for line in lines if line != b"data: [DONE]"]


class InvokeStream:
    """The server-sent events of another protocol as chunks; the last has Bedrock's figures with it."""

    media_type = AMAZON_EVENT_STREAM
    keep_alive = b""

    def __init__(self, stream: StreamRenderer) -> None:
        self._stream = stream
        self._usages: dict[int, Usage] = {}
        self._begun_s = perf_counter()
        self._first_s: float | None = None
        self._held: list[bytes] = []

    def render(self, index: int, event: Event) -> bytes:
        payloads = [*self._held, *sse_data(self._stream.render(index, event))]
        self._held = []
        if isinstance(event, Text) and self._first_s is None:
            self._first_s = perf_counter()
        if isinstance(event, Finish):
            self._usages[index] = event.usage
            # It may turn out to be the last of all.
            payloads, self._held = payloads[:-1], payloads[-1:]
        return b"".join(map(_chunk, payloads))

    def close(self) -> bytes:
        *payloads, last = [*self._held, *sse_data(self._stream.close())]
        ended_s = perf_counter()
        figures = {
            "inputTokenCount": max((one.prompt_tokens for one in self._usages.values()), default=0),
            "outputTokenCount": sum(one.completion_tokens for one in self._usages.values()),
            "invocationLatency": milliseconds(self._begun_s, ended_s),
            "firstByteLatency": milliseconds(self._begun_s, self._first_s or ended_s),
        }
        measured = f',"amazon-bedrock-invocationMetrics":{json.dumps(figures)}}}'.encode()
        return b"".join(map(_chunk, [*payloads, last.rstrip().removesuffix(b"}") + measured]))

    def fail(self, error: VermilionError) -> bytes:
        return stream_exception(error)


def _chunk(payload: bytes) -> bytes:
    return event_message("chunk", b'{"bytes":"' + b64encode(payload) + b'"}')


def _given(context: RequestContext, body: AnyBody, id: str, stream: bool) -> dict[str, Any]:
    """The body as its route reads it. Raises `BadRequest` and `ModelNotFound`."""
    headers = context.http.headers
    if headers.get(f"{_HEADER}guardrailidentifier"):
        raise BadRequest(
            "guardrailIdentifier: this service has no guardrails. Leave it out.",
            "guardrailIdentifier",
            "unsupported_parameter",
        )
    name = cloud_model(id, context.model, context.service.config)
    given = {**body.given, "model": name, "stream": stream}
    if headers.get(f"{_HEADER}performanceconfig-latency") == "optimized":
        given.setdefault("realtime", True)
    return given


async def invoke(context: RequestContext, body: AnyBody, id: str) -> Response:
    begun_s = perf_counter()
    reply = await dispatched(context, _given(context, body, id, stream=False))
    usage = json.loads(bytes(reply.body)).get("usage") or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    counts = {
        "input-token-count": usage.get("input_tokens", usage.get("prompt_tokens", 0) - cached),
        "output-token-count": usage.get("output_tokens", usage.get("completion_tokens", 0)),
        "cache-read-input-token-count": usage.get("cache_read_input_tokens", cached),
        "cache-write-input-token-count": 0,
        "invocation-latency": milliseconds(begun_s, perf_counter()),
    }
    reply.headers.update({f"{_HEADER}{name}": str(count) for name, count in counts.items()})
    return reply


async def invoke_stream(context: RequestContext, body: AnyBody, id: str) -> Response:
    given = _given(context, body, id, stream=True)
    reply = await dispatched(replace(context, wrap=InvokeStream), given)
    if reply.media_type != AMAZON_EVENT_STREAM:
        # Of a route that does not stream.
        reply = Response(_chunk(bytes(reply.body)), media_type=AMAZON_EVENT_STREAM)
    reply.headers[f"{_HEADER}content-type"] = "application/json"
    return reply


async def count_tokens(context: RequestContext, body: CountTokensBody, id: str) -> Response:
    if body.input.converse is not None:
        num_tokens = await conversation_tokens(context, id, body.input.converse)
    elif body.input.invoke_model is not None:
        num_tokens = await _invoked_tokens(context, id, body.input.invoke_model.body)
    else:
        raise BadRequest("input: give one of converse and invokeModel.", "input", "invalid_value")
    return json_response({"inputTokens": num_tokens})


async def _invoked_tokens(context: RequestContext, id: str, encoded: str) -> int:
    param = "input.invokeModel.body"
    try:
        given = from_json(decoded(encoded, param), allow_inf_nan=False)
    except ValueError as error:
        raise BadRequest(f"{param}: this is not valid JSON: {error}.", param, "invalid_json") from None
    if not isinstance(given, dict):
        raise BadRequest(f"{param}: this must be a JSON object.", param, "invalid_type")
    config = context.service.config
    given["model"] = cloud_model(id, context.model, config)
    if "anthropic_version" in given:
        asked = convert(given, CountBody, {})
        return await chat.num_prompt_tokens(asked.chat, context.served, config, asked.begun)
    path = route_of(given).path
    if path == _CHAT:
        return await chat.num_prompt_tokens(convert(given, ChatBody, {}), context.served, config)
    if "prompt" in given:
        prompts = convert(given, CompletionBody, {}).prompts
        return sum([len(await chat.text_tokens(prompt, context.served)) for prompt in prompts])
    raise BadRequest(f"{param}: tokens are counted of messages or of a prompt.", param, "invalid_value")


_BODY = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 64}
INVOKE = operation(
    "amazon",
    "Answer a body of any route",
    "Its fields say which: `messages`, `prompt`, `prompt` and `suffix`, `questions`, `parts`, `input`, or "
    "`anthropic_version` for Anthropic's. The reply is that route's; its tokens stand in `x-amzn-bedrock-` "
    "headers too.",
    {"A question": _BODY},
    {"object": "chat.completion", "choices": [{"message": {"content": "Paris."}, "finish_reason": "stop"}]},
)
INVOKE_STREAM = operation(
    "amazon",
    "Answer a body of any route as a stream",
    "Every chunk of that route's stream, canvases of `diffusing` too, is the payload of an event `chunk`.",
    {"A question": _BODY, "As it denoises": {**_BODY, "diffusing": True}},
    None,
)
COUNT = operation(
    "amazon",
    "Count the tokens of a conversation or a body",
    "With its tools and the chat template, also of one that does not fit.",
    {"A question": {"input": {"converse": {"messages": [{"role": "user", "content": [{"text": "Hi"}]}]}}}},
    {"inputTokens": 31},
)


ROUTES = (
    Route("POST", "/model/{id:path}/invoke", invoke, INVOKE, AnyBody),
    Route("POST", "/model/{id:path}/invoke-with-response-stream", invoke_stream, INVOKE_STREAM, AnyBody),
    Route("POST", "/model/{id:path}/count-tokens", count_tokens, COUNT, CountTokensBody),
)
