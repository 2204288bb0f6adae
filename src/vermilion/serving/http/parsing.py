"""From the bytes of a request to a checked body; whatever is wrong with them is the caller's mistake."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, MutableSequence, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from fastapi import Request as HttpRequest
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import ClientDisconnect

from vermilion.errors import BadRequest
from vermilion.serving.heavy_work import offload
from vermilion.serving.http import auth
from vermilion.serving.http.connection import ClientGone
from vermilion.serving.http.extra_parameters import EXTRA_PARAMETERS, without_extra

Body = TypeVar("Body", bound=BaseModel)

_LONGEST_SHOWN = 80
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""zlib's parameter for each content encoding that is unpacked."""
_SIGNED_CHUNKS = "aws-chunked"
"""Amazon's, which is gone once the signatures are checked; another may stand behind it."""
_INLINE_BYTES = 32 * 1024
"""Larger bodies are read on a thread."""
LARGE_BODY = "vermilion.large_body"
"""Key of the scope that says whether the body was."""
_LARGE_BYTES = 1024 * 1024
LARGE_AT_ONCE = 4
"""So many bodies above `_LARGE_BYTES` are in memory at once; others are left in the kernel's buffers."""
_BODY_TIMEOUT_S = 60.0
MAX_OBJECTS = 24_000
MAX_VALUES = 400_000
"""Braces, and commas with brackets, of a body. JSON is taken apart in one piece that nothing can interrupt,
so its parts are counted first: two million empty objects in 4 MB would take 0.4 s and 400 MB."""
_MAX_REPAIRS = 8
"""Rounds of `_repaired`: a field that was null or 8.0 can hide an error of the object around it."""


class BodyTooLarge(BadRequest):
    status = 413

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The request body is larger than {limit_bytes} bytes.", code="request_too_large")


class BodyTooSlow(BadRequest):
    status = 408

    def __init__(self) -> None:
        message = f"The request body did not arrive within {_BODY_TIMEOUT_S:g} s."
        super().__init__(message, code="request_timeout")


class NotJson(BadRequest):
    status = 415

    def __init__(self, given: str) -> None:
        super().__init__(
            f"Content-Type {given[:_LONGEST_SHOWN]!r} is not understood; send the body as application/json.",
            code="unsupported_media_type",
        )


class UnknownEncoding(BadRequest):
    status = 415

    def __init__(self, given: str) -> None:
        super().__init__(
            f"Content-Encoding {given[:_LONGEST_SHOWN]!r} is not understood; send gzip, deflate or none.",
            code="unsupported_encoding",
        )


async def read(request: HttpRequest, kind: type[Body], limit_bytes: int, places: asyncio.Semaphore) -> Body:
    """The body as a `kind`; `places` are for large ones.

    Raises `BadRequest` (400, 408, 413, 415), and `ClientGone` where it never arrives.
    """
    _check_media_type(request)
    async with AsyncExitStack() as held:
        content = await _receive(request, limit_bytes, lambda: held.enter_async_context(places))

        def work() -> Body:
            unpacked = _unpacked(auth.verified(content, request.headers), request, limit_bytes)
            auth.seen(unpacked)
            return parse(unpacked, kind, request.headers.get(EXTRA_PARAMETERS))

        large = len(content) > _INLINE_BYTES or "content-encoding" in request.headers
        request.scope[LARGE_BODY] = large
        return await offload(work) if large else work()


def _check_media_type(request: HttpRequest) -> None:
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    # The local servers' clients, curl -d among them, send JSON under any name. A web page may do that
    # without asking first, but not without its Origin.
    local = not request.url.path.startswith("/v1/") and "origin" not in request.headers
    if media_type != "application/json" and not local:
        raise NotJson(media_type)


def _unpacked(content: bytes, request: HttpRequest, limit_bytes: int) -> bytes:
    """The body as it was before its Content-Encoding, which may not hide more than `limit_bytes`."""
    encoding = request.headers.get("content-encoding", "").strip().lower() or "identity"
    encoding = encoding.removeprefix(_SIGNED_CHUNKS).lstrip(", ") or "identity"
    if encoding == "identity":
        return content
    if encoding not in _WINDOW_BITS:
        raise UnknownEncoding(encoding)
    unpacking = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        unpacked = unpacking.decompress(content, limit_bytes + 1)
    except zlib.error as error:
        raise BadRequest(f"The request body is not valid {encoding}: {error}.", code="invalid_body") from None
    if len(unpacked) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    if not unpacking.eof:
        raise BadRequest(f"The request body is {encoding} without its end.", code="invalid_body")
    return unpacked


def parse(content: bytes, kind: type[Body], extra: str | None = None) -> Body:
    """JSON as a `kind`. Raises `BadRequest`; NaN, infinities and nesting past 200 levels are no JSON here.

    `extra` says what becomes of fields that Azure's chat does not have.
    """
    if len(content) > _INLINE_BYTES:
        _check_parts(content)
    try:
        value = from_json(content.removeprefix(_BYTE_ORDER_MARK), allow_inf_nan=False)
    except ValueError as error:
        raise BadRequest(f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise BadRequest("The request body must be a JSON object.", code="invalid_type")
    return convert(without_extra(value, extra), kind, {})


def convert(value: Mapping[str, Any], kind: type[Body], names: Mapping[str, str]) -> Body:
    """Fields as a `kind`. Raises `BadRequest`, which calls fields by the caller's own `names`.

    A field that is null is one left out, and 8.0 is a whole number where one is wanted, at any depth.
    """
    details: list[ErrorDetails] = []
    for _ in range(_MAX_REPAIRS):
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=False)
        repaired = _repaired(value, details)
        if repaired is None:
            break
        value = repaired
    raise _explain(details[0], names)


def _repaired(value: Mapping[str, Any], details: Sequence[ErrorDetails]) -> dict[str, Any] | None:
    """`value` without the nulls that were refused, and with whole numbers as integers; None for neither.

    What is nested in it is changed in place: a copy of a long conversation would hold up every stream.
    """
    repaired, changed = dict(value), False
    for detail in details:
        holder, key = _place(repaired, detail["loc"])
        if holder is None:
            continue
        given = holder[key]
        if given is None and isinstance(holder, MutableMapping):
            del holder[key]
            changed = True
        elif detail["type"] == "int_type" and isinstance(given, float) and given.is_integer():
            holder[key] = int(given)
            changed = True
    return repaired if changed else None


def _place(value: Any, steps: Sequence[str | int]) -> tuple[Any, Any]:
    """The innermost container on the way of an error, and the key in it; (None, None) for none.

    The steps also name the kinds of a union, which are no keys.
    """
    holder, last = None, None
    for step in steps:
        known = isinstance(value, MutableMapping) and step in value
        listed = isinstance(value, MutableSequence) and isinstance(step, int) and step < len(value)
        if known or listed:
            holder, last, value = value, step, value[step]
    return holder, last


def _check_parts(content: bytes) -> None:
    """Raises `BadRequest` for more parts than a conversation that fits a model can have."""
    num_objects, num_values = content.count(b"{"), content.count(b",") + content.count(b"[")
    if num_objects > MAX_OBJECTS or num_values > MAX_VALUES:
        raise BadRequest(
            f"The request body has too many parts: {num_objects} braces and {num_values} commas or brackets, "
            f"at most {MAX_OBJECTS} and {MAX_VALUES}.",
            code="request_too_complex",
        )


async def _receive(request: HttpRequest, limit_bytes: int, place: Callable[[], Awaitable[None]]) -> bytes:
    """The raw body; a large one waits for its `place`."""
    content, waiting = bytearray(), True
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            async for chunk in request.stream():
                content += chunk
                if len(content) > limit_bytes:
                    raise BodyTooLarge(limit_bytes)
                if waiting and len(content) > _LARGE_BYTES:
                    await place()
                    waiting = False
    except ClientDisconnect:
        raise ClientGone from None
    except TimeoutError:
        raise BodyTooSlow from None
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
    given = given[:_LONGEST_SHOWN] if isinstance(given, str) else given
    shown = f" (given: {given!r:.{_LONGEST_SHOWN}})" if isinstance(given, str | int | float | None) else ""
    code = "invalid_type" if detail["type"].endswith("_type") else "invalid_value"
    return BadRequest(f"{path}: {reason[:1].lower()}{reason[1:]}{shown}.", path, code)
