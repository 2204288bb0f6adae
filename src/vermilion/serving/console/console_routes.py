"""The console's page and its files, and signing in to it. Everything else it shows it asks the API for."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from fastapi.responses import Response
from pydantic import BaseModel, Field

import vermilion
from vermilion.accounts import organisations
from vermilion.accounts.gate import Accounts
from vermilion.accounts.keys import Key
from vermilion.accounts.refusals import InvalidKey
from vermilion.serving.console.console_sessions import (
    COOKIE,
    LIFETIME_S,
    ConsoleSession,
    check_same_origin,
)
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import OPEN, Route
from vermilion.serving.wire.openai_bodies import WIRE

FOLDER = Path(__file__).parent / "assets"
"""What `scripts/build-console` makes of `console/`."""
_PAGE = "index.html"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=()",
}
_LONGEST_KEY = 200
_MOST_BODY_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the console as it is sent."""

    content: bytes
    packed: bytes
    kind: str
    tag: str


class SignInBody(BaseModel):
    """Body of POST /console/session."""

    model_config = WIRE

    key: str = Field(min_length=1, max_length=_LONGEST_KEY)


@cache
def assets() -> dict[str, Asset]:
    """By name, below /console/."""
    return {path.name: _asset(path) for path in sorted(FOLDER.iterdir()) if path.suffix in _KINDS}


def _asset(path: Path) -> Asset:
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return Asset(content, gzip.compress(content, mtime=0), _KINDS[path.suffix], tag)


async def page(context: RequestContext) -> Response:
    return _sent(context, _PAGE)


async def asset(context: RequestContext, name: str) -> Response:
    if name not in assets():
        raise HTTPException(404)
    return _sent(context, name)


def _sent(context: RequestContext, name: str) -> Response:
    found, asked = assets()[name], context.http.headers
    # Browsers keep it and ask each time whether it is still the same.
    headers = {**HEADERS, "cache-control": "no-cache", "etag": found.tag, "vary": "accept-encoding"}
    if found.tag in asked.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if "gzip" in asked.get("accept-encoding", ""):
        return Response(found.packed, 200, {**headers, "content-encoding": "gzip"}, found.kind)
    return Response(found.content, 200, headers, found.kind)


async def session(context: RequestContext) -> Response:
    """Whether one must sign in, and who has."""
    accounts = context.service.accounts
    if accounts is None:
        return _told({"accounts": False})
    opened = context.service.console_sessions.find(context.http.headers)
    if opened is None:
        return _told(_signed_out(accounts))
    try:
        key = await accounts.known(opened.key_id)
    except InvalidKey:
        return _told(_signed_out(accounts))
    return _told(await _signed_in(accounts, key, opened))


async def sign_in(context: RequestContext, body: SignInBody) -> Response:
    accounts, limit = context.service.accounts, context.service.sign_in_limit
    if accounts is None:
        return _told({"accounts": False})
    check_same_origin(context.http.headers)
    address = context.http.client.host if context.http.client else ""
    limit.check(address)
    try:
        key = await accounts.authenticate(body.key.strip())
    except InvalidKey:
        limit.fail(address)
        raise
    token, opened = context.service.console_sessions.start(key.id)
    reply = _told(await _signed_in(accounts, key, opened))
    _set_cookie(context, reply, token, LIFETIME_S)
    return reply


async def sign_out(context: RequestContext) -> Response:
    check_same_origin(context.http.headers)
    context.service.console_sessions.end(context.http.headers)
    accounts = context.service.accounts
    reply = _told({"accounts": False} if accounts is None else _signed_out(accounts))
    _set_cookie(context, reply, "", 0)
    return reply


def _told(state: dict[str, Any]) -> Response:
    reply = json_response({"object": "console.session", "version": vermilion.__version__, **state})
    reply.headers["cache-control"] = "no-store"
    return reply


def _signed_out(accounts: Accounts) -> dict[str, Any]:
    return {"accounts": True, "sign_up": bool(accounts.config.sign_ups_per_hour), "key": None}


async def _signed_in(accounts: Accounts, key: Key, opened: ConsoleSession) -> dict[str, Any]:
    owner = await accounts.call(organisations.organisation, key.organisation_id)
    return {
        **_signed_out(accounts),
        "key": organisations.key_body(key),
        "organisation": {"id": owner.id, "name": owner.name},
        "csrf": opened.csrf,
    }


def _set_cookie(context: RequestContext, reply: Response, token: str, age_s: int) -> None:
    """The browser sends it to this service alone, and shows it to no script."""
    secure = context.http.url.scheme == "https"
    reply.set_cookie(COOKIE, token, max_age=age_s, path="/", secure=secure, httponly=True, samesite="strict")


ROUTES = (
    Route("GET", "/console", page, scopes=OPEN, needs_model=False),
    Route("GET", "/console/session", session, scopes=OPEN, needs_model=False),
    Route(
        "POST",
        "/console/session",
        sign_in,
        body=SignInBody,
        scopes=OPEN,
        needs_model=False,
        max_body_bytes=_MOST_BODY_BYTES,
    ),
    Route("DELETE", "/console/session", sign_out, scopes=OPEN, needs_model=False),
    Route("GET", "/console/{name}", asset, scopes=OPEN, needs_model=False),
)
