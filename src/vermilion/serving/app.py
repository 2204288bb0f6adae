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
from vermilion.serving import (
    accounts,
    adapters,
    anthropic,
    decisions,
    description,
    editing,
    feedback,
    generation,
    holes,
    llamacpp,
    lmstudio,
    models,
    ollama,
    responses,
    responses_bodies,
)
from vermilion.serving.access import EXPOSED_HEADERS
from vermilion.serving.call import json_response
from vermilion.serving.edge import Edge
from vermilion.serving.edits import EditBody
from vermilion.serving.errors import error_response, refusal
from vermilion.serving.fim import FimBody
from vermilion.serving.offline import batches, batching, files, jobs, tuning
from vermilion.serving.ollama_bodies import OllamaChatBody, OllamaGenerateBody, OllamaShowBody
from vermilion.serving.openai import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from vermilion.serving.service import Service

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
    adapters.LoadBody,
    adapters.UnloadBody,
    jobs.JobBody,
    batches.BatchBody,
)
# Editors and desktop applications show web pages of their own schemes.
_LOCAL_ORIGINS = (
    r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?|(app|file|tauri|vscode-file|vscode-webview)://.*"
)


def create_app(service: Service) -> FastAPI:
    """The ASGI application of one service."""
    # Its page of /docs brings its own scripts: many a machine that serves a model has no way out.
    app = FastAPIOffline(
        title="Vermilion",
        version=vermilion.__version__,
        description=description.OVERVIEW,
        openapi_tags=description.TAGS,
        redoc_url=None,
        redirect_slashes=False,
    )
    for add in (
        generation.add_routes,
        editing.add_routes,
        decisions.add_routes,
        feedback.add_routes,
        holes.add_routes,
        responses.add_routes,
        models.add_routes,
        models.add_token_routes,
        adapters.add_routes,
        files.add_routes,
        tuning.add_routes,
        batching.add_routes,
        anthropic.add_routes,
        ollama.add_generating_routes,
        ollama.add_model_routes,
        lmstudio.add_routes,
        llamacpp.add_routes,
        accounts.add_routes,
        _add_operations,
    ):
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
        expose_headers=["x-request-id", "Retry-After", *EXPOSED_HEADERS],
    )
    description.install(app, (*BODIES, *accounts.BODIES) if service.accounts else BODIES)
    return app


def _add_operations(router: APIRouter, service: Service) -> None:
    @router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def root(http: HttpRequest) -> Response:
        # Ollama's clients, which ask for no page, look for these words before anything else.
        if "text/html" in http.headers.get("accept", ""):
            return RedirectResponse("/docs")
        return PlainTextResponse("Ollama is running")

    @router.get("/health", **description.HEALTH)
    async def health() -> Response:
        return json_response({"status": "ok"})

    @router.get("/ready", **description.READY)
    async def ready() -> Response:
        service.admit()
        return json_response({"status": "ready"})

    @router.get("/metrics", **description.METRICS)
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _add_error_handlers(app: FastAPI, service: Service) -> None:
    @app.exception_handler(VermilionError)
    async def of_ours(request: HttpRequest, error: VermilionError) -> Response:
        service.metrics.errors.labels(error.code or error.kind).inc()
        return error_response(error, request.url.path)

    @app.exception_handler(HTTPException)
    async def of_the_router(request: HttpRequest, error: HTTPException) -> Response:
        service.metrics.errors.labels("unknown_url").inc()
        return refusal(request.method, request.url.path, error)
