"""Errors, in the shape that the clients of each route read."""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from vermilion.errors import ContextLengthExceeded, VermilionError
from vermilion.serving.http.amazon_errors import amazon_response, is_amazon

_UNAUTHORIZED = 401
_NOT_IMPLEMENTED = 501
_SERVER_ERROR = 500
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def openai_error(error: VermilionError) -> dict[str, Any]:
    return {"error": {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}}


def anthropic_error(error: VermilionError) -> dict[str, Any]:
    other = "api_error" if error.status >= _SERVER_ERROR else "invalid_request_error"
    kind = _ANTHROPIC_TYPES.get(error.status, other)
    message = str(error)
    if isinstance(error, ContextLengthExceeded):
        # The words after which Claude Code and others compact the conversation and go on.
        message = f"prompt is too long: {error.given} tokens > {error.limit} maximum"
    return {"type": "error", "error": {"type": kind, "message": message}}


def ollama_error(error: VermilionError) -> dict[str, Any]:
    return {"error": str(error)}


def error_response(error: VermilionError, path: str) -> Response:
    """The reply of the route at `path`, in its canonical spelling."""
    if is_amazon(path):
        return amazon_response(error, path)
    shape = openai_error
    if path.startswith("/v1/messages"):
        shape = anthropic_error
    elif path.startswith("/api/") and not path.startswith("/api/v0"):
        shape = ollama_error
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if error.status == _UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == _NOT_IMPLEMENTED:
        # OpenAI's clients ask again after any other 5xx.
        headers["x-should-retry"] = "false"
    return Response(json.dumps(shape(error)), error.status, headers, "application/json")


def refusal(method: str, path: str, error: HTTPException) -> Response:
    """What the router itself refuses: unknown addresses and methods."""
    wrong = VermilionError(f"{method} {path[:200]}: {error.detail}. The routes are listed under /docs.")
    wrong.status = error.status_code
    wrong.kind = "invalid_request_error" if error.status_code < _SERVER_ERROR else "server_error"
    wrong.code = "unknown_url"
    response = error_response(wrong, path)
    response.headers.update(error.headers or {})
    return response


def internal_error(request_id: str, path: str) -> Response:
    """An error of ours; the log has its trace under the id."""
    return error_response(
        VermilionError(f"An internal error occurred. The server's log says more under {request_id}."), path
    )
