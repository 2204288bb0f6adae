"""The routes."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse, RedirectResponse, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

import vermilion
from vermilion.errors import VermilionError
from vermilion.serving.admin import account_routes, adapter_routes, feedback, model_admin_routes
from vermilion.serving.audio import speech_routes, transcription_routes
from vermilion.serving.console import console_routes
from vermilion.serving.generation import decisions, holes
from vermilion.serving.http import openapi
from vermilion.serving.http.auth import EXPOSED_HEADERS
from vermilion.serving.http.error_rendering import error_response, refusal
from vermilion.serving.http.middleware import EdgeMiddleware
from vermilion.serving.http.notices import SCHEMA_IGNORED
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import OPEN, OPERATE, Route, RouteTable
from vermilion.serving.jobs import batch_routes, file_routes, fine_tuning_routes
from vermilion.serving.service_state import ServiceState
from vermilion.serving.wire import (
    anthropic,
    azure,
    bedrock,
    bedrock_invoke,
    decoder_routes,
    embeddings,
    llamacpp,
    llamacpp_server,
    lmstudio,
    mercury,
    model_routes,
    ollama,
    openai,
    responses,
    sagemaker,
)

# Editors and desktop applications show web pages of their own schemes.
_LOCAL_ORIGINS = (
    r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?|(app|file|tauri|vscode-file|vscode-webview)://.*"
)


async def root(http: HttpRequest) -> Response:
    # Ollama's clients, which ask for no page, look for these words before anything else.
    if "text/html" in http.headers.get("accept", ""):
        return RedirectResponse("/console")
    return PlainTextResponse("Ollama is running")


async def health(context: RequestContext) -> Response:
    return json_response({"status": "ok"})


async def ready(context: RequestContext) -> Response:
    return json_response({"status": "ready"})


async def metrics(context: RequestContext) -> Response:
    return Response(context.service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


ROUTES = (
    *openai.ROUTES,
    *mercury.ROUTES,
    *anthropic.ROUTES,
    *responses.ROUTES,
    *bedrock.ROUTES,
    *bedrock_invoke.ROUTES,
    *sagemaker.ROUTES,
    *azure.ROUTES,
    *decisions.ROUTES,
    *feedback.ROUTES,
    *holes.ROUTES,
    *model_routes.ROUTES,
    *decoder_routes.ROUTES,
    *adapter_routes.ROUTES,
    *model_admin_routes.ROUTES,
    *file_routes.ROUTES,
    *fine_tuning_routes.ROUTES,
    *batch_routes.ROUTES,
    *ollama.ROUTES,
    *lmstudio.ROUTES,
    *llamacpp.ROUTES,
    *llamacpp_server.ROUTES,
    *embeddings.ROUTES,
    *transcription_routes.ROUTES,
    *speech_routes.ROUTES,
    *console_routes.ROUTES,
    Route("GET", "/health", health, openapi.HEALTH, scopes=OPEN, needs_model=False),
    Route("GET", "/ready", ready, openapi.READY, scopes=OPEN),
    # Balancers and monitors often ask without wanting a body.
    Route("HEAD", "/health", health, scopes=OPEN, needs_model=False),
    Route("HEAD", "/ready", ready, scopes=OPEN),
    Route("GET", "/metrics", metrics, openapi.METRICS, scopes=OPERATE, needs_model=False),
)
"""Of every service; one with accounts has theirs as well. They are tried one by one, so those that generate
stand first: matching a hundred others costs a fifth of a millisecond."""


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
    routes = ROUTES if service.accounts is None else (*ROUTES, *account_routes.ROUTES)
    # Into the application's own router: one that is included is matched twice.
    for route in routes:
        route.add(app.router, service)
    app.add_api_route("/", root, methods=["GET", "HEAD"], include_in_schema=False)
    _add_error_handlers(app, service)
    # The last added is the outermost: error replies too must carry the CORS headers.
    app.add_middleware(EdgeMiddleware, service=service, table=RouteTable(routes))
    app.add_middleware(
        CORSMiddleware,
        allow_origins=service.config.cors_origins,
        allow_origin_regex=_LOCAL_ORIGINS,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "Retry-After", SCHEMA_IGNORED, *EXPOSED_HEADERS],
    )
    openapi.install(app, {route.body for route in routes if route.body is not None and route.operation})
    return app


def _add_error_handlers(app: FastAPI, service: ServiceState) -> None:
    @app.exception_handler(VermilionError)
    async def of_ours(request: HttpRequest, error: VermilionError) -> Response:
        service.metrics.errors.labels(error.code or error.kind).inc()
        return error_response(error, request.url.path)

    @app.exception_handler(HTTPException)
    async def of_the_router(request: HttpRequest, error: HTTPException) -> Response:
        service.metrics.errors.labels("unknown_url").inc()
        return refusal(request.method, request.url.path, error)
