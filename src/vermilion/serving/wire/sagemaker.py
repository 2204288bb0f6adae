"""SageMaker: what its containers must answer, and what its runtime answers for them."""

from __future__ import annotations

from dataclasses import replace

from fastapi.responses import Response

from vermilion.errors import VermilionError
from vermilion.serving.generation.cloud_names import cloud_model
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext
from vermilion.serving.http.routes import OPEN, Route
from vermilion.serving.http.sse import StreamRenderer
from vermilion.serving.wire.amazon_events import AMAZON_EVENT_STREAM, event_message, exception_message
from vermilion.serving.wire.body_dispatch import AnyBody, dispatched
from vermilion.types import Event

_HEADER = "x-amzn-sagemaker-"
_PART_BYTES = 1024 * 1024
"""Of one message of a stream at most."""


class PartStream:
    """The bytes of another protocol's stream, cut as they come."""

    media_type = AMAZON_EVENT_STREAM
    keep_alive = b""

    def __init__(self, stream: StreamRenderer) -> None:
        self._stream = stream

    def render(self, index: int, event: Event) -> bytes:
        return _parts(self._stream.render(index, event))

    def close(self) -> bytes:
        return _parts(self._stream.close())

    def fail(self, error: VermilionError) -> bytes:
        # The container's own words first: they say what went wrong.
        told = b'{"Message":"The model ended its stream with an error.","ErrorCode":"ModelStreamError"}'
        return _parts(self._stream.fail(error)) + exception_message("ModelStreamError", told)


def _parts(content: bytes) -> bytes:
    parts = (content[at : at + _PART_BYTES] for at in range(0, len(content), _PART_BYTES))
    return b"".join(event_message("PayloadPart", part, "application/octet-stream") for part in parts)


async def ping(context: RequestContext) -> Response:
    return Response(status_code=200)


async def invocations(context: RequestContext, body: AnyBody) -> Response:
    return await dispatched(context, body.given)


async def invoke_endpoint(context: RequestContext, body: AnyBody, name: str) -> Response:
    reply = await _answered(context, body, name)
    return _named(context, reply)


async def invoke_endpoint_stream(context: RequestContext, body: AnyBody, name: str) -> Response:
    reply = await _answered(replace(context, wrap=PartStream), body, name)
    told = reply.media_type or ""
    if told != AMAZON_EVENT_STREAM:
        reply = Response(_parts(bytes(reply.body)), media_type=AMAZON_EVENT_STREAM)
    reply.headers[f"{_HEADER}content-type"] = "text/event-stream" if told == AMAZON_EVENT_STREAM else told
    return _named(context, reply)


async def _answered(context: RequestContext, body: AnyBody, name: str) -> Response:
    """Raises `ModelNotFound` for an endpoint that is no model's name."""
    target = context.http.headers.get(f"{_HEADER}target-model") or context.http.headers.get(
        f"{_HEADER}inference-component"
    )
    model = cloud_model(target or name, context.model, context.service.config)
    return await dispatched(context, {**body.given, "model": model})


def _named(context: RequestContext, reply: Response) -> Response:
    reply.headers["x-amzn-invoked-production-variant"] = "AllTraffic"
    return reply


_BODY = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 64}
_REPLY = {
    "object": "chat.completion",
    "choices": [{"message": {"content": "Paris."}, "finish_reason": "stop"}],
}
PING = operation(
    "amazon", "Whether the container takes requests", "200 once the model is loaded.", None, None
)
INVOCATIONS = operation(
    "amazon",
    "Answer a body of any route",
    "What SageMaker asks of a container. The body's fields say which route is meant, and `stream` whether "
    "its answer is one; errors are that route's.",
    {"A question": _BODY},
    _REPLY,
)
ENDPOINT = operation(
    "amazon",
    "Answer a body of any route, as SageMaker's runtime",
    "The endpoint's name is a model's. What the route refuses is a `ModelError` with its reply in it.",
    {"A question": _BODY},
    _REPLY,
)
ENDPOINT_STREAM = operation(
    "amazon",
    "Stream the answer to a body of any route",
    "The bytes of that route's stream in events `PayloadPart`.",
    {"A question": {**_BODY, "stream": True}},
    None,
)


ROUTES = (
    Route("GET", "/ping", ping, PING, scopes=OPEN),
    Route("POST", "/invocations", invocations, INVOCATIONS, AnyBody),
    Route("POST", "/endpoints/{name}/invocations", invoke_endpoint, ENDPOINT, AnyBody),
    Route(
        "POST",
        "/endpoints/{name}/invocations-response-stream",
        invoke_endpoint_stream,
        ENDPOINT_STREAM,
        AnyBody,
    ),
)
