"""Signing in to the console: a key is exchanged for a cookie, so that no page keeps a secret.

A session is a random token of 256 bits in an HttpOnly cookie; here only its hash is kept, with the id of the
key, never the key's secret. Each request reads the key again, so that a session ends with its key. The cookie
alone permits nothing but asking for the session's anti-forgery token: every other request must repeat that
token in a header, which a page of another origin can neither read nor send. Sessions live in this process and
end with it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers

from vermilion.accounts.meters import Standing
from vermilion.accounts.refusals import NotPermitted, RateLimited

COOKIE = "vermilion_console"
CSRF_HEADER = "x-csrf-token"
LIFETIME_S = 12 * 3600
_MAX_SESSIONS = 10_000
_WINDOW_S = 60.0
_FAILURES_OF_ADDRESS = 10
_FAILURES_IN_ALL = 300
_MAX_ADDRESSES = 10_000


class ForgedRequest(NotPermitted):
    """The cookie came without the session's token, as a page of another origin would send it."""

    code = "csrf_token_missing"


@dataclass(frozen=True, slots=True)
class ConsoleSession:
    """Who is signed in, and until when (monotonic seconds)."""

    key_id: str
    csrf: str
    ends_s: float


@dataclass(slots=True)
class ConsoleSessions:
    """Those of one process."""

    _open: OrderedDict[str, ConsoleSession] = field(default_factory=OrderedDict)

    def start(self, key_id: str) -> tuple[str, ConsoleSession]:
        """A new session, and the token that its cookie carries."""
        token = secrets.token_urlsafe(32)
        session = ConsoleSession(key_id, secrets.token_urlsafe(32), time.monotonic() + LIFETIME_S)
        self._open[_digest(token)] = session
        while len(self._open) > _MAX_SESSIONS:
            self._open.popitem(last=False)
        return token, session

    def find(self, headers: Headers) -> ConsoleSession | None:
        """That of the cookie, whatever else the request says."""
        digest = _digest(_token(headers))
        session = self._open.get(digest)
        if session is not None and session.ends_s < time.monotonic():
            del self._open[digest]
            return None
        return session

    def permitted(self, headers: Headers) -> ConsoleSession | None:
        """That of a request which may act for it. Raises `ForgedRequest` where it lacks the token."""
        session = self.find(headers)
        if session is None:
            return None
        check_same_origin(headers)
        if not hmac.compare_digest(session.csrf, headers.get(CSRF_HEADER, "")):
            raise ForgedRequest(
                f"A request of the console needs the header {CSRF_HEADER}; load the page anew."
            )
        return session

    def end(self, headers: Headers) -> None:
        self._open.pop(_digest(_token(headers)), None)


class SignInLimit:
    """Counts failures within the last minute, of each address and in all."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, list[float]] = OrderedDict()
        self._all: list[float] = []

    def check(self, address: str) -> None:
        """Raises `RateLimited` once there were too many."""
        since_s = time.monotonic() - _WINDOW_S
        self._all = [at_s for at_s in self._all if at_s > since_s]
        own = [at_s for at_s in self._failures.get(address, ()) if at_s > since_s]
        for failures, most in ((own, _FAILURES_OF_ADDRESS), (self._all, _FAILURES_IN_ALL)):
            if len(failures) >= most:
                wait_s = max(1, round(failures[-most] - since_s))
                raise RateLimited("Too many keys were wrong. Try again later.", wait_s, Standing())

    def fail(self, address: str) -> None:
        now_s = time.monotonic()
        self._all.append(now_s)
        self._failures[address] = [*self._failures.pop(address, ())[-_FAILURES_OF_ADDRESS:], now_s]
        while len(self._failures) > _MAX_ADDRESSES:
            self._failures.popitem(last=False)


def check_same_origin(headers: Headers) -> None:
    """Raises `ForgedRequest` where the browser says that another origin's page is asking."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise ForgedRequest("The console answers its own page only.")


def _token(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
