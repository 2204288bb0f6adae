"""The routes."""

from __future__ import annotations

import json
import secrets
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi import Request as HttpRequest
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import RedirectResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

import vermilion
from vermilion.errors import ModelNotFound, VermilionError
from vermilion.serving import chat, description
from vermilion.serving.answers import Answers, answer
from vermilion.serving.body import read
from vermilion.serving.connection import while_connected
from vermilion.serving.edge import Edge
from vermilion.serving.errors import error_response, refusal
from vermilion.serving.openai import ChatBody, CompletionBody
from vermilion.serving.replies import Head, chat_reply, completion_reply, fold, model_body
from vermilion.serving.service import Service
from vermilion.serving.sse import EventStream, StreamRenderer, frames
from vermilion.serving.streams import ChatStream, CompletionStream, DiffusionStream

_JSON = "application/json"
# Editors and desktop applications show web pages of their own schemes.
_LOCAL_ORIGINS = (
    r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?|(app|file|tauri|vscode-file|vscode-webview)://.*"
)


def create_app(service: Service) -> FastAPI:
    """The ASGI application of one service."""
    app = FastAPI(
        title="Vermilion",
        version=vermilion.__version__,
        description=description.OVERVIEW,
        openapi_tags=description.TAGS,
        redoc_url=None,
        redirect_slashes=False,
    )
    for add in (_add_chat, _add_completions, _add_models, _add_operations):
        router = APIRouter()
        add(router, service)
        app.include_router(router)
    _add_error_handlers(app, service)
    # The last added is the outermost: error replies too must carry the CORS headers.
    app.add_middleware(Edge, service=service)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=service.config.cors_origins,
        allow_origin_regex=_LOCAL_ORIGINS,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "Retry-After"],
    )
    description.install(app)
    return app


def _add_chat(router: APIRouter, service: Service) -> None:
    @router.post("/v1/chat/completions", **description.CHAT)
    async def chat_completions(request: HttpRequest) -> Response:
        served = service.admit()
        body = await read(request, ChatBody, service.config.max_body_bytes)
        head = Head(f"chatcmpl-{secrets.token_hex(12)}", served.backend.model.id)
        requests = await chat.chat_requests(body, served, service.config, head.id)
        if body.streams:
            answers = answer(service, served.backend, requests, service.config.keep_alive_s)
            renderer: StreamRenderer = (
                DiffusionStream(head, body.wants_usage_chunk, len(requests))
                if body.diffusing
                else ChatStream(head, body.wants_usage_chunk)
            )
            return _stream(answers, renderer, service)
        choices = await while_connected(
            request.receive, fold(answer(service, served.backend, requests), len(requests))
        )
        return Response(chat_reply(head, choices, bool(body.logprobs)), media_type=_JSON)


def _add_completions(router: APIRouter, service: Service) -> None:
    @router.post("/v1/completions", **description.COMPLETIONS)
    async def completions(request: HttpRequest) -> Response:
        served = service.admit()
        body = await read(request, CompletionBody, service.config.max_body_bytes)
        head = Head(f"cmpl-{secrets.token_hex(12)}", served.backend.model.id)
        requests = await chat.completion_requests(body, served, service.config, head.id)
        if body.stream:
            answers = answer(service, served.backend, requests, service.config.keep_alive_s)
            renderer = CompletionStream(head, body.wants_usage_chunk, len(requests))
            return _stream(answers, renderer, service)
        choices = await while_connected(
            request.receive, fold(answer(service, served.backend, requests), len(requests))
        )
        return Response(completion_reply(head, choices, body.logprobs is not None), media_type=_JSON)


def _stream(answers: Answers, renderer: StreamRenderer, service: Service) -> EventStream:
    return EventStream(frames(answers, renderer, service.metrics))


def _add_models(router: APIRouter, service: Service) -> None:
    def rows() -> dict[str, dict[str, Any]]:
        model = service.admit().backend.model
        names = [model.id, *chat.served_aliases(model, service.config)]
        return {name: model_body(model, name, ChatBody.model_fields) for name in names}

    @router.get("/v1/models", **description.MODELS)
    async def models() -> Response:
        return _json({"object": "list", "data": list(rows().values())})

    @router.get("/v1/models/{id:path}", **description.MODEL)
    async def model(id: str) -> Response:
        known = rows()
        if id not in known:
            raise ModelNotFound(id[:100], tuple(known))
        return _json(known[id])


def _add_operations(router: APIRouter, service: Service) -> None:
    @router.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/docs")

    @router.get("/health", **description.HEALTH)
    async def health() -> Response:
        return _json({"status": "ok"})

    @router.get("/ready", **description.READY)
    async def ready() -> Response:
        service.admit()
        return _json({"status": "ready"})

    @router.get("/metrics", **description.METRICS)
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _add_error_handlers(app: FastAPI, service: Service) -> None:
    @app.exception_handler(VermilionError)
    async def of_ours(request: HttpRequest, error: VermilionError) -> Response:
        service.metrics.errors.labels(error.code or error.kind).inc()
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def of_the_router(request: HttpRequest, error: HTTPException) -> Response:
        service.metrics.errors.labels("unknown_url").inc()
        return refusal(request.method, request.url.path, error)


def _json(content: object) -> Response:
    return Response(json.dumps(content), media_type=_JSON)
