"""What a route is: one declaration, from which come the FastAPI route, the scope that a key needs for it, the
limit of its body, its spellings and its entry in the API reference.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.routing import compile_path

from vermilion.serving.http.asked_model import asked_names
from vermilion.serving.http.openapi import request_body
from vermilion.serving.http.parsing import read
from vermilion.serving.http.request_context import RequestContext
from vermilion.serving.service_state import ServiceState

Handler = Callable[..., Awaitable[Response]]
"""Takes the `RequestContext`, the `body` if the route has one, and parameters of path and query by name."""

GENERATE = ("generate",)
JOBS = ("jobs",)
MANAGE = ("manage",)
OPERATE = ("operate",)
OPEN: tuple[str, ...] = ()

_AZURE = re.compile(r"/openai(?:/deployments/([^/]+))?(?=/)")
_FOUNDRY = re.compile(r"/models(?=/(?:chat/completions|completions|embeddings|info)$)")
"""What Azure AI's clients put before a route."""
_SLASHES = re.compile("//+")
"""What is left where a client puts `/v1/...` behind an address that ends in a slash."""
_VERSION = "/v1"


@dataclass(frozen=True, slots=True)
class Route:
    """One address of the service."""

    method: str
    path: str
    handler: Handler
    operation: dict[str, Any] = field(default_factory=dict)
    """What `openapi.operation` makes; nothing for a route that the reference leaves out."""
    body: type[BaseModel] | None = None
    scopes: tuple[str, ...] = GENERATE
    """A key needs any of these on a service with accounts; with none the route is open to everybody."""
    needs_model: bool = True
    """Whether it is refused while the model is loading and while the service stops."""
    loads: bool = True
    """Whether the model that the body names is loaded for it; else the route has the default one."""
    max_body_bytes: int | None = None
    """`serve.max_body_bytes` unless given."""
    status_code: int = 200

    def add(self, router: APIRouter, service: ServiceState) -> None:
        described = {name: value for name, value in self.operation.items() if name != "examples"}
        if self.body is not None and self.operation:
            described["openapi_extra"] = request_body(self.body.__name__, self.operation["examples"])
        router.add_api_route(
            self.path,
            self._endpoint(service),
            methods=[self.method],
            status_code=self.status_code,
            response_model=None,
            include_in_schema=bool(self.operation),
            **described,
        )

    def _endpoint(self, service: ServiceState) -> Handler:
        """The handler as FastAPI takes it: what is left of its signature are parameters of path and query."""
        handler, kind = self.handler, self.body
        limit_bytes = self.max_body_bytes or service.config.max_body_bytes

        async def endpoint(http: HttpRequest, **given: Any) -> Response:
            context = RequestContext(http, service, service.admit() if self.needs_model else None)
            if kind is None:
                if self.needs_model and self.method == "DELETE":
                    context = replace(context, loaded=await service.choose(asked_names(http, None)))
                return await handler(context, **given)
            body = await read(http, kind, limit_bytes, service.large_bodies)
            if self.needs_model and self.loads:
                context = replace(context, loaded=await service.choose(asked_names(http, body)))
            named = http.scope.get("deployment")
            if named:
                # A model named in the path wins over the body's.
                body = body.model_copy(update={"model": named})
            return await handler(context, body, **given)

        parameters = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in inspect.signature(handler, eval_str=True).parameters.items()
            if name not in ("context", "body")
        ]
        http = inspect.Parameter("http", inspect.Parameter.KEYWORD_ONLY, annotation=HttpRequest)
        endpoint.__signature__ = inspect.Signature([http, *parameters])  # type: ignore[attr-defined]
        endpoint.__name__ = handler.__name__
        return endpoint


class RouteTable:
    """The declared routes by address, for what must be known before the router runs."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._exact: dict[str, list[Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], Route]] = []
        for route in routes:
            if "{" in route.path:
                self._patterns.append((compile_path(route.path)[0], route))
            else:
                self._exact.setdefault(route.path, []).append(route)
        versioned = {route.path.split("/")[2] for route in routes if route.path.startswith(f"{_VERSION}/")}
        bare = {route.path.split("/")[1] for route in routes if not route.path.startswith(f"{_VERSION}/")}
        self._versioned = versioned - bare
        self._only_versioned = tuple(f"{_VERSION}/{name}" for name in versioned & bare)

    def scopes(self, method: str, path: str) -> tuple[str, ...]:
        """Of a canonical path; those of `generate` for what is no route."""
        found = self._exact.get(path) or [route for pattern, route in self._patterns if pattern.match(path)]
        for route in found:
            if route.method == method:
                return route.scopes
        return found[0].scopes if found else GENERATE

    def canonical(self, path: str) -> str:
        """The one spelling of a route: /v1 before OpenAI's and its kin, never before others; single slashes,
        none at the end, and nothing of what Azure's and DeepSeek's clients put before it.
        """
        path = _SLASHES.sub("/", path)
        if path.startswith("/beta/"):
            path = path.removeprefix("/beta")
        bare = _AZURE.sub("", path.rstrip("/"), count=1) if path.startswith("/openai/") else path.rstrip("/")
        if bare.startswith("/models/"):
            bare = _FOUNDRY.sub("", bare, count=1)
        if bare in self._only_versioned:
            # Such as /v1/infill: ours; llama.cpp's of the same name has no version.
            return bare
        if bare == _VERSION or bare.startswith(f"{_VERSION}/"):
            bare = bare.removeprefix(_VERSION)
        first = bare.split("/", 2)[1] if bare else ""
        return f"{_VERSION}{bare}" if first in self._versioned else bare or "/"


def deployment(path: str) -> str | None:
    """The model that a client of Azure names in the path rather than in the body."""
    found = _AZURE.match(_SLASHES.sub("/", path))
    return found[1] if found else None
