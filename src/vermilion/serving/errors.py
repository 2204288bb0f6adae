"""Errors in OpenAI's shape."""

from __future__ import annotations

import json

from starlette.exceptions import HTTPException
from starlette.responses import Response

from vermilion.errors import VermilionError

_SERVER_ERROR = 500


def error_body(error: VermilionError) -> dict[str, object]:
    return {"error": {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}}


def error_response(error: VermilionError) -> Response:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return Response(json.dumps(error_body(error)), error.status, headers, "application/json")


def refusal(method: str, path: str, error: HTTPException) -> Response:
    """What the router itself refuses: unknown addresses and methods."""
    wrong = VermilionError(f"{method} {path[:200]}: {error.detail}. The routes are listed under /docs.")
    wrong.status = error.status_code
    wrong.kind = "invalid_request_error" if error.status_code < _SERVER_ERROR else "server_error"
    wrong.code = "unknown_url"
    response = error_response(wrong)
    response.headers.update(error.headers or {})
    return response


def internal_error(request_id: str) -> Response:
    """An error of ours; the log has its trace under the id."""
    return error_response(
        VermilionError(f"An internal error occurred. The server's log says more under {request_id}.")
    )
