"""The routes."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi import Request as HttpRequest
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse, RedirectResponse, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

import vermilion
from vermilion.errors import VermilionError
from vermilion.serving.admin import account_routes, adapter_routes, feedback
from vermilion.serving.generation import decisions, holes
from vermilion.serving.generation.edits import EditBody
from vermilion.serving.http import openapi
from vermilion.serving.http.auth import EXPOSED_HEADERS
from vermilion.serving.http.error_rendering import error_response, refusal
from vermilion.serving.http.middleware import EdgeMiddleware
from vermilion.serving.http.request_context import json_response
from vermilion.serving.jobs import batch_routes, batches, file_routes, fine_tuning_jobs, fine_tuning_routes
from vermilion.serving.service_state import ServiceState
from vermilion.serving.wire import (
    anthropic,
    llamacpp,
    lmstudio,
    mercury,
    model_routes,
    ollama,
    openai,
    responses,
    responses_bodies,
)
from vermilion.serving.wire.mercury_bodies import FimBody
from vermilion.serving.wire.ollama_bodies import OllamaChatBody, OllamaGenerateBody, OllamaShowBody
from vermilion.serving.wire.openai_bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody

BODIES = (
    ChatBody,
    CompletionBody,
    FimBody,
    EditBody,
    TokenizeBody,
    DetokenizeBody,
    anthropic.MessagesBody,
    anthropic.CountBody,
    OllamaChatBody,
    OllamaGenerateBody,
    OllamaShowBody,
    llamacpp.InfillBody,
    decisions.DecisionsBody,
    holes.HolesBody,
    feedback.FeedbackBody,
    responses_bodies.ResponsesBody,
    adapter_routes.LoadBody,
    adapter_routes.UnloadBody,
    fine_tuning_jobs.JobBody,
    batches.BatchBody,
)
# Editors and desktop applications show web pages of their own schemes.
_LOCAL_ORIGINS = (
    r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?|(app|file|tauri|vscode-file|vscode-webview)://.*"
)


def create_app(service: ServiceState) -> FastAPI:
    """The ASGI application of one service."""
    # Its page of /docs brings its own scripts: many a machine that serves a model has no way out.
    app = FastAPIOffline(
        title="Vermilion",
        version=vermilion.__version__,
        description=openapi.OVERVIEW,
        openapi_tags=openapi.TAGS,
        redoc_url=None,
        redirect_slashes=False,
    )
    for add in (
        openai.add_routes,
        mercury.add_routes,
        decisions.add_routes,
        feedback.add_routes,
        holes.add_routes,
        responses.add_routes,
        model_routes.add_routes,
        model_routes.add_token_routes,
        adapter_routes.add_routes,
        file_routes.add_routes,
        fine_tuning_routes.add_routes,
        batch_routes.add_routes,
        anthropic.add_routes,
        ollama.add_generating_routes,
        ollama.add_model_routes,
        lmstudio.add_routes,
        llamacpp.add_routes,
        account_routes.add_routes,
        _add_operations,
    ):
        router = APIRouter()
        add(router, service)
        app.include_router(router)
    _add_error_handlers(app, service)
    # The last added is the outermost: error replies too must carry the CORS headers.
    app.add_middleware(EdgeMiddleware, service=service)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=service.config.cors_origins,
        allow_origin_regex=_LOCAL_ORIGINS,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "Retry-After", *EXPOSED_HEADERS],
    )
    openapi.install(app, (*BODIES, *account_routes.BODIES) if service.accounts else BODIES)
    return app


def _add_operations(router: APIRouter, service: ServiceState) -> None:
    @router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def root(http: HttpRequest) -> Response:
        # Ollama's clients, which ask for no page, look for these words before anything else.
        if "text/html" in http.headers.get("accept", ""):
            return RedirectResponse("/docs")
        return PlainTextResponse("Ollama is running")

    @router.get("/health", **openapi.HEALTH)
    async def health() -> Response:
        return json_response({"status": "ok"})

    @router.get("/ready", **openapi.READY)
    async def ready() -> Response:
        service.admit()
        return json_response({"status": "ready"})

    @router.get("/metrics", **openapi.METRICS)
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _add_error_handlers(app: FastAPI, service: ServiceState) -> None:
    @app.exception_handler(VermilionError)
    async def of_ours(request: HttpRequest, error: VermilionError) -> Response:
        service.metrics.errors.labels(error.code or error.kind).inc()
        return error_response(error, request.url.path)

    @app.exception_handler(HTTPException)
    async def of_the_router(request: HttpRequest, error: HTTPException) -> Response:
        service.metrics.errors.labels("unknown_url").inc()
        return refusal(request.method, request.url.path, error)
