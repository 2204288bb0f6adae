"""The outermost layer of the service: hosts, addresses, request ids, metrics, and whatever nobody caught."""

from __future__ import annotations

import asyncio
import logging
import secrets
from time import perf_counter

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vermilion.accounts.gate import Visit
from vermilion.errors import VermilionError
from vermilion.serving.http import auth
from vermilion.serving.http.amazon_errors import amazon_headers
from vermilion.serving.http.connection import ClientGone
from vermilion.serving.http.error_rendering import error_response, internal_error
from vermilion.serving.http.hosts import HostNotAllowed, check_host
from vermilion.serving.http.notices import notice_headers, open_notices
from vermilion.serving.http.routes import RouteTable, deployment
from vermilion.serving.jobs.internal_requests import FROM_WITHIN
from vermilion.serving.service_state import ServiceState

_CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a request whose client left before a reply began; only metrics and the log see it."""
_ALLOW_HOST = "--set 'serve.allowed_hosts=[\"{}\"]'"

_PROBES = frozenset({"/health", "/ready", "/ping", "/metrics"})
"""Routes that machines ask every few seconds; their lines would hide the others in the log."""
_LINE = "%s %s %s %d %.1f ms"

_log = logging.getLogger(__name__)


class EdgeMiddleware:
    """ASGI middleware. Every reply gets an x-request-id, under which the log tells of an internal error."""

    def __init__(self, app: ASGIApp, service: ServiceState, table: RouteTable) -> None:
        self._app = app
        self._table = table
        self._service = service
        self._metrics = service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = perf_counter()
        request_id = f"req-{secrets.token_hex(12)}"
        path = self._table.canonical(scope["path"])
        scope = {**scope, "path": path, "deployment": deployment(scope["path"])}
        status = 0
        visit: Visit | None = None
        notices = open_notices()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", request_id.encode()), *auth.reply_headers(visit)]
                own += notice_headers(notices) + amazon_headers(path, request_id)
                headers = [*message["headers"], *own]
                message = {**message, "headers": headers}
            await send(message)

        try:
            visit, answering = await self._enter(scope, request_id)
            with auth.visiting(visit):
                await answering(scope, receive, send_with_id)
        except ClientGone:
            status = status or _CLIENT_CLOSED_REQUEST
        except asyncio.CancelledError:
            # The server's last resort at the end of a drain, for a client that never read its stream.
            if not self._service.draining or FROM_WITHIN in scope:
                raise
            status = status or _CLIENT_CLOSED_REQUEST
        except Exception:
            _log.exception("%s failed", request_id)
            self._metrics.errors.labels("internal_error").inc()
            if not status:
                await internal_error(request_id, path)(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            duration_s = perf_counter() - started_s
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_s.labels(route).observe(duration_s)
            level = logging.DEBUG if route in _PROBES else logging.INFO
            _log.log(level, _LINE, request_id, scope["method"], route, status, duration_s * 1000)

    async def _enter(self, scope: Scope, request_id: str) -> tuple[Visit | None, ASGIApp]:
        """Who asks, and what answers them: the application, or a refusal in their own shape."""
        headers, path = Headers(scope=scope), scope["path"]
        try:
            if FROM_WITHIN in scope:
                return scope[FROM_WITHIN], self._app
            config = self._service.config
            check_host(headers.get("host"), config.host, config.allowed_hosts, _ALLOW_HOST)
            if self._service.accounts is None:
                return None, self._app
            scopes = self._table.scopes(scope["method"], path)
            if not scopes or auth.is_page(path):
                return None, self._app
            gates = self._service.accounts, self._service.console_sessions
            visit = await auth.enter(gates, request_id, scopes, scope)
            return visit, self._app
        except VermilionError as error:
            self._metrics.errors.labels(error.code or error.kind).inc()
            return None, error_response(error, "/" if isinstance(error, HostNotAllowed) else path)
