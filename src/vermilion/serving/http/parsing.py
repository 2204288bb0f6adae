"""From the bytes of a request to a checked body; whatever is wrong with them is the caller's mistake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request as HttpRequest
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import ClientDisconnect

from vermilion.errors import BadRequest
from vermilion.serving.http import auth
from vermilion.serving.http.connection import ClientGone

Body = TypeVar("Body", bound=BaseModel)

_LONGEST_SHOWN = 80


class BodyTooLarge(BadRequest):
    status = 413

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The request body is larger than {limit_bytes} bytes.", code="request_too_large")


class NotJson(BadRequest):
    status = 415

    def __init__(self, given: str) -> None:
        super().__init__(
            f"Content-Type {given[:_LONGEST_SHOWN]!r} is not understood; send the body as application/json.",
            code="unsupported_media_type",
        )


async def read(request: HttpRequest, kind: type[Body], limit_bytes: int) -> Body:
    """The body as a `kind`. Raises `BadRequest` (400, 413, 415), and `ClientGone` where it never arrives."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise NotJson(media_type)
    content = await _receive(request, limit_bytes)
    auth.seen(content)
    return parse(content, kind)


def parse(content: bytes, kind: type[Body]) -> Body:
    """JSON as a `kind`. Raises `BadRequest`; NaN, infinities and nesting past 200 levels are no JSON here."""
    try:
        value = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise BadRequest(f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise BadRequest("The request body must be a JSON object.", code="invalid_type")
    return convert(value, kind, {})


def convert(value: Mapping[str, Any], kind: type[Body], names: Mapping[str, str]) -> Body:
    """Fields as a `kind`. Raises `BadRequest`, which calls fields by the caller's own `names`."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _explain(error.errors(include_url=False, include_context=False)[0], names) from None


async def _receive(request: HttpRequest, limit_bytes: int) -> bytes:
    content = bytearray()
    try:
        async for chunk in request.stream():
            content += chunk
            if len(content) > limit_bytes:
                raise BodyTooLarge(limit_bytes)
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(content)


def _explain(detail: ErrorDetails, names: Mapping[str, str]) -> BadRequest:
    """One sentence: where, what is wrong, what was given."""
    path = ""
    for step in detail["loc"]:
        path += (
            f"[{step}]"
            if isinstance(step, int)
            else f".{step[:_LONGEST_SHOWN]}"
            if path
            else names.get(step, step)
        )
    reason = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        return BadRequest(f"{path}: this field is required.", path, "missing_required_parameter")
    given = detail["input"]
    shown = f" (given: {given!r:.{_LONGEST_SHOWN}})" if isinstance(given, str | int | float | None) else ""
    code = "invalid_type" if detail["type"].endswith("_type") else "invalid_value"
    return BadRequest(f"{path}: {reason[:1].lower()}{reason[1:]}{shown}.", path, code)
