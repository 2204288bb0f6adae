"""Multipart bodies: a file and a few fields."""

from __future__ import annotations

from fastapi import Request as HttpRequest
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message

from vermilion.errors import BadRequest
from vermilion.serving.http.connection import ClientGone
from vermilion.serving.http.parsing import BodyTooLarge

_ENVELOPE_BYTES = 64 * 1024
"""What a form may hold besides its file."""


async def read_form(http: HttpRequest, limit_bytes: int, max_fields: int = 10) -> FormData:
    """The fields of a multipart body of at most `limit_bytes`; large files lie on the disk.

    Raises `BadRequest` (400, 413), and `ClientGone` where it never arrives.
    """
    num_bytes = 0

    async def receive() -> Message:
        nonlocal num_bytes
        message = await http.receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > limit_bytes + _ENVELOPE_BYTES:
            raise BodyTooLarge(limit_bytes)
        return message

    try:
        form = await HttpRequest(http.scope, receive).form(max_files=1, max_fields=max_fields)
    except ClientDisconnect:
        raise ClientGone from None
    except HTTPException as error:
        raise BadRequest(f"The form cannot be read: {error.detail}", "file") from None
    return form
