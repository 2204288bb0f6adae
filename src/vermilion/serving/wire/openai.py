"""OpenAI's generating routes and Mercury's, and LM Studio's copies of them."""

from __future__ import annotations

import secrets

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from vermilion.serving.generation import chat
from vermilion.serving.generation.choices import Choice
from vermilion.serving.http import openapi
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.sse import StreamRenderer
from vermilion.serving.service_state import ServiceState
from vermilion.serving.wire import lmstudio
from vermilion.serving.wire.mercury_bodies import FIM, FimBody
from vermilion.serving.wire.openai_bodies import ChatBody, CompletionBody
from vermilion.serving.wire.openai_replies import Head, chat_reply, completion_reply
from vermilion.serving.wire.openai_streams import ChatStream, CompletionStream, DiffusionStream


def add_routes(router: APIRouter, service: ServiceState) -> None:
    @router.post("/v1/chat/completions", **openapi.CHAT)
    async def chat_completions(http: HttpRequest) -> Response:
        return await _chat(RequestContext.admit(http, service))

    @router.post("/v1/completions", **openapi.COMPLETIONS)
    async def completions(http: HttpRequest) -> Response:
        context = RequestContext.admit(http, service)
        return await _complete(context, await context.body(CompletionBody))

    @router.post("/v1/fim/completions", **FIM)
    async def fim_completions(http: HttpRequest) -> Response:
        context = RequestContext.admit(http, service)
        return await _complete(context, (await context.body(FimBody)).completion, delta=True)

    @router.post("/api/v0/chat/completions", **lmstudio.CHAT)
    async def lm_studio_chat(http: HttpRequest) -> Response:
        return await _chat(RequestContext.admit(http, service), figures=True)

    @router.post("/api/v0/completions", **lmstudio.COMPLETIONS)
    async def lm_studio_completions(http: HttpRequest) -> Response:
        context = RequestContext.admit(http, service)
        return await _complete(context, await context.body(CompletionBody), figures=True)


async def _chat(context: RequestContext, figures: bool = False) -> Response:
    body = await context.body(ChatBody)
    head = Head(f"chatcmpl-{secrets.token_hex(12)}", context.answering(body.model))
    requests = await chat.chat_requests(body, context.served, context.service.config, head.id)
    box = chat.toolbox(body, context.service.config)
    if body.diffusing:
        diff = body.diffusing == "diff"
        return context.stream(
            requests, DiffusionStream(head, body.wants_usage_chunk, len(requests), box, diff)
        )
    if body.stream:
        stream = ChatStream(head, body.wants_usage_chunk, box)
        return context.stream(requests, lmstudio.FiguresStream(stream, context.model) if figures else stream)
    choices = await context.whole(requests)
    reply = chat_reply(head, choices, bool(body.logprobs), box)
    if body.reasoning_summary:
        # The model reasons in its answer, if at all: there is nothing else to sum up.
        reply["reasoning_summary"] = {"content": None, "status": "unavailable"}
    return json_response(reply | _figures(context, choices, figures))


async def _complete(
    context: RequestContext, body: CompletionBody, delta: bool = False, figures: bool = False
) -> Response:
    head = Head(f"cmpl-{secrets.token_hex(12)}", context.answering(body.model))
    requests = await chat.completion_requests(body, context.served, context.service.config, head.id)
    if body.stream:
        stream = CompletionStream(head, body.wants_usage_chunk, len(requests), delta)
        renderer: StreamRenderer = lmstudio.FiguresStream(stream, context.model) if figures else stream
        return context.stream(requests, renderer)
    choices = await context.whole(requests)
    reply = completion_reply(head, choices, body.logprobs is not None)
    return json_response(reply | _figures(context, choices, figures))


def _figures(context: RequestContext, choices: list[Choice], wanted: bool) -> dict[str, object]:
    return lmstudio.figures(context.model, choices[0]) if wanted else {}
