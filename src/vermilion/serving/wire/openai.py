"""OpenAI's generating routes and Mercury's, and LM Studio's copies of them."""

from __future__ import annotations

import secrets

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from vermilion.serving.generation import chat
from vermilion.serving.generation.replies import Choice, Head, chat_reply, completion_reply
from vermilion.serving.generation.streams import ChatStream, CompletionStream, DiffusionStream
from vermilion.serving.http import openapi
from vermilion.serving.http.request_context import Call, json_response
from vermilion.serving.http.sse import StreamRenderer
from vermilion.serving.service_state import Service
from vermilion.serving.wire import lmstudio
from vermilion.serving.wire.mercury_bodies import FIM, FimBody
from vermilion.serving.wire.openai_bodies import ChatBody, CompletionBody


def add_routes(router: APIRouter, service: Service) -> None:
    @router.post("/v1/chat/completions", **openapi.CHAT)
    async def chat_completions(http: HttpRequest) -> Response:
        return await _chat(Call.admit(http, service))

    @router.post("/v1/completions", **openapi.COMPLETIONS)
    async def completions(http: HttpRequest) -> Response:
        call = Call.admit(http, service)
        return await _complete(call, await call.body(CompletionBody))

    @router.post("/v1/fim/completions", **FIM)
    async def fim_completions(http: HttpRequest) -> Response:
        call = Call.admit(http, service)
        return await _complete(call, (await call.body(FimBody)).completion, delta=True)

    @router.post("/api/v0/chat/completions", **lmstudio.CHAT)
    async def lm_studio_chat(http: HttpRequest) -> Response:
        return await _chat(Call.admit(http, service), figures=True)

    @router.post("/api/v0/completions", **lmstudio.COMPLETIONS)
    async def lm_studio_completions(http: HttpRequest) -> Response:
        call = Call.admit(http, service)
        return await _complete(call, await call.body(CompletionBody), figures=True)


async def _chat(call: Call, figures: bool = False) -> Response:
    body = await call.body(ChatBody)
    head = Head(f"chatcmpl-{secrets.token_hex(12)}", call.answering(body.model))
    requests = await chat.chat_requests(body, call.served, call.service.config, head.id)
    box = chat.toolbox(body, call.service.config)
    if body.diffusing:
        diff = body.diffusing == "diff"
        return call.stream(requests, DiffusionStream(head, body.wants_usage_chunk, len(requests), box, diff))
    if body.stream:
        stream = ChatStream(head, body.wants_usage_chunk, box)
        return call.stream(requests, lmstudio.FiguresStream(stream, call.model) if figures else stream)
    choices = await call.whole(requests)
    reply = chat_reply(head, choices, bool(body.logprobs), box)
    if body.reasoning_summary:
        # The model reasons in its answer, if at all: there is nothing else to sum up.
        reply["reasoning_summary"] = {"content": None, "status": "unavailable"}
    return json_response(reply | _figures(call, choices, figures))


async def _complete(call: Call, body: CompletionBody, delta: bool = False, figures: bool = False) -> Response:
    head = Head(f"cmpl-{secrets.token_hex(12)}", call.answering(body.model))
    requests = await chat.completion_requests(body, call.served, call.service.config, head.id)
    if body.stream:
        stream = CompletionStream(head, body.wants_usage_chunk, len(requests), delta)
        renderer: StreamRenderer = lmstudio.FiguresStream(stream, call.model) if figures else stream
        return call.stream(requests, renderer)
    choices = await call.whole(requests)
    reply = completion_reply(head, choices, body.logprobs is not None)
    return json_response(reply | _figures(call, choices, figures))


def _figures(call: Call, choices: list[Choice], wanted: bool) -> dict[str, object]:
    return lmstudio.figures(call.model, choices[0]) if wanted else {}
