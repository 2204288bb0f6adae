"""Which web pages may begin calls.

A page of any site can open a WebSocket to 127.0.0.1 and post to it: browsers keep the answer to a post from
it, and from a WebSocket not even that. They do say in the Origin header where a page is from. Programs and
phone providers send none.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vermilion.errors import VermilionError
from vermilion.serving.http.error_rendering import error_response
from vermilion.serving.http.hosts import check_host

_READING = ("GET", "HEAD")
_LONGEST_SHOWN = 80


class OriginNotAllowed(VermilionError):
    """The page that asks is not of this server, nor of a name that was allowed."""

    status = 403
    kind = "permission_error"
    code = "origin_not_allowed"

    def __init__(self, origin: str) -> None:
        super().__init__(
            f"Origin {origin[:_LONGEST_SHOWN]!r} is not allowed: only this server's own page may begin "
            "calls. If the page is meant, start the server with --allow-host and its host name."
        )


class PageCheck:
    """ASGI middleware: answers 403 to foreign Host headers where only this computer is to call, and to
    foreign pages in all that is more than reading."""

    def __init__(self, app: ASGIApp, host: str, allowed_hosts: Sequence[str]) -> None:
        """`host`: the address that the server listens on."""
        self._app, self._host = app, host
        self._allowed = [name.lower() for name in allowed_hosts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                self._check(scope)
            except VermilionError as error:
                await error_response(error, "/")(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host"), headers.get("origin")
        check_host(host, self._host, self._allowed, "--allow-host {}")
        # A WebSocket has no method.
        if origin is not None and scope.get("method") not in _READING and not self._is_ours(origin, host):
            raise OriginNotAllowed(origin)

    def _is_ours(self, origin: str, host: str | None) -> bool:
        """The scheme is left out: behind a proxy the page has https and we have not."""
        try:
            page = urlsplit(origin)
        except ValueError:
            return False
        return bool(page.netloc) and (
            page.netloc.lower() == (host or "").lower() or page.hostname in self._allowed
        )
