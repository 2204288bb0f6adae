"""Mercury's routes for editors: the next edit, and putting a snippet into a file."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

from fastapi.responses import Response

from vermilion.errors import VermilionError
from vermilion.serving.generation import chat, model_names
from vermilion.serving.generation.choices import Choice
from vermilion.serving.generation.edit_markers import MarkerFilter, without_markers
from vermilion.serving.generation.edits import APPLY, EDIT, EditBody, fenced, parse_apply, parse_edit
from vermilion.serving.generation.events import EventStream
from vermilion.serving.generation.merge import merged
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import Route
from vermilion.serving.http.sse import FrameStream, StreamRenderer, frames
from vermilion.serving.wire.mercury_bodies import FIM, FimBody
from vermilion.serving.wire.openai import complete
from vermilion.serving.wire.openai_replies import Head, chat_reply
from vermilion.serving.wire.openai_streams import ChatStream
from vermilion.types import Event, Finish, Request, Text


async def fim_completions(context: RequestContext, body: FimBody) -> Response:
    return await complete(context, body.completion, delta=True)


async def edit_completions(context: RequestContext, body: EditBody) -> Response:
    edit = await context.offload(lambda: parse_edit(body.text))
    head = Head(f"cmpl-{secrets.token_hex(12)}", context.answering(body.model))
    request = await chat.edit_request(edit, body, context.served, context.service.config, head.id)
    (choice,) = await context.whole([request])
    region = without_markers(choice.text, f"{edit.file}\n{edit.region}")
    choice.texts = [fenced(region, edit)]
    return _told(context, body, head, choice, "edit.completion")


async def apply_completions(context: RequestContext, body: EditBody) -> Response:
    head = Head(f"cmpl-{secrets.token_hex(12)}", context.answering(body.model))
    text = body.text
    context.served.check_length(len(text))
    whole = await context.offload(lambda: _merged(text))
    tagged = parse_apply(text)
    source = tagged[0] if tagged else text
    if whole is not None:
        model_names.check_model(body.model, context.model, context.service.config)
        prompt = await chat.text_tokens(text, context.served)
        choice = await context.ready(Request(head.id, tuple(prompt)), without_markers(whole, source))
        return _told(context, body, head, choice, "apply.completion")
    request = await chat.apply_request(body, context.served, context.service.config, head.id)
    if body.stream:
        stream = ChatStream(head, body.wants_usage_chunk)
        return context.stream([request], MarkerFreeStream(stream, MarkerFilter(source)))
    (choice,) = await context.whole([request])
    choice.texts = [without_markers(choice.text, source)]
    return _told(context, body, head, choice, "apply.completion")


def _merged(text: str) -> str | None:
    tagged = parse_apply(text)
    return merged(*tagged) if tagged else None


def _told(context: RequestContext, body: EditBody, head: Head, choice: Choice, kind: str) -> Response:
    """A finished answer as one reply, or as a stream of one piece."""
    if body.stream:
        renderer: StreamRenderer = ChatStream(head, body.wants_usage_chunk)
        renderer = context.wrap(renderer) if context.wrap else renderer
        return FrameStream(frames(_events(choice), renderer, context.service.metrics), renderer.media_type)
    reply: dict[str, Any] = chat_reply(head, [choice], False)
    return json_response({**reply, "object": kind})


class MarkerFreeStream:
    """The stream of one answer without the marks of the edit format."""

    def __init__(self, stream: ChatStream, markers: MarkerFilter) -> None:
        self._stream = stream
        self._markers = markers
        self.media_type = stream.media_type
        self.keep_alive = stream.keep_alive

    def render(self, index: int, event: Event) -> bytes:
        if isinstance(event, Text):
            return self._stream.render(index, replace(event, text=self._markers.push(event.text)))
        rest = self._markers.finish() if isinstance(event, Finish) else ""
        return (self._stream.render(index, Text(rest)) if rest else b"") + self._stream.render(index, event)

    def close(self) -> bytes:
        return self._stream.close()

    def fail(self, error: VermilionError) -> bytes:
        return self._stream.fail(error)


async def _events(choice: Choice) -> EventStream:
    yield 0, Text(choice.text)
    yield 0, Finish(choice.reason, choice.usage)


ROUTES = (
    Route("POST", "/v1/fim/completions", fim_completions, FIM, FimBody),
    Route("POST", "/v1/edit/completions", edit_completions, EDIT, EditBody),
    Route("POST", "/v1/apply/completions", apply_completions, APPLY, EditBody),
)
