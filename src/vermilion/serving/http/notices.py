"""What a reply says about its request in headers: the keywords of schemas that were not enforced."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from urllib.parse import quote

SCHEMA_IGNORED = "x-schema-ignored"
_MAX_CHARACTERS = 2000
"""Proxies refuse heads beyond a few kilobytes."""

_IGNORED: ContextVar[list[str] | None] = ContextVar("ignored_keywords", default=None)


def open_notices() -> list[str]:
    """The notices of this task's request from now on."""
    notices: list[str] = []
    _IGNORED.set(notices)
    return notices


def note_ignored(keywords: Iterable[str]) -> None:
    notices = _IGNORED.get()
    if notices is not None:
        notices += [keyword for keyword in keywords if keyword not in notices]


def notice_headers(notices: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """One header with as many of them as it has room for, percent-encoded where it has no letter for one."""
    value = ", ".join(quote(notice, safe="#/:$ ~[]") for notice in notices)
    if len(value) > _MAX_CHARACTERS:
        value = f"{value[: value.rindex(', ', 0, _MAX_CHARACTERS)]}, ..." if ", " in value else "..."
    return [(SCHEMA_IGNORED.encode(), value.encode())] if value else []
