"""Who may ask for what: the key of a request, the scope its address needs, the headers about its limits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from starlette.datastructures import Headers
from starlette.types import Scope

from vermilion.accounts.clock import SECOND_US, now_us
from vermilion.accounts.gate import Accounts, Visit
from vermilion.accounts.keys import Key
from vermilion.accounts.meters import Room, Standing
from vermilion.accounts.refusals import InvalidKey
from vermilion.errors import BadParameter
from vermilion.serving.console.console_sessions import ConsoleSessions
from vermilion.serving.http import sigv4
from vermilion.serving.http.amazon_errors import SignatureRefused, is_amazon

VISIT: ContextVar[Visit | None] = ContextVar("visit", default=None)
"""The visit that this task works for; None on a service without accounts. A variable of the context, so that
no route can forget to pass it on and give answers away."""

EXPOSED_HEADERS = tuple(
    f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")
)
_PAGES = ("/docs", "/docs/oauth2-redirect", "/openapi.json", "/")
_PAGES_BELOW = "/static-offline-docs/"
_LONGEST_IDEMPOTENCY_KEY = 200


def is_page(path: str) -> bool:
    """Whether it is the API reference or a part of it, which everybody may read."""
    return path in _PAGES or path.startswith(_PAGES_BELOW)


def sent_keys(headers: Headers) -> dict[str, str]:
    """Header -> key, the one that counts first: as OpenAI's and most send it, as Anthropic's, as Azure's."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    found = {"Authorization: Bearer": token.strip() if scheme.lower() == "bearer" else ""}
    found |= {name: headers.get(name, "") for name in ("x-api-key", "api-key")}
    return {name: key for name, key in found.items() if key}


async def _authenticated(accounts: Accounts, sessions: ConsoleSessions, headers: Headers) -> Key:
    """Raises `InvalidKey`, which says which of several keys was read, and `ForgedRequest`."""
    keys = sent_keys(headers)
    session = None if keys else sessions.permitted(headers)
    if session is not None:
        return await accounts.known(session.key_id)
    read, *unread = keys or [""]
    try:
        return await accounts.authenticate(keys.get(read))
    except InvalidKey as error:
        if not any(keys[name] != keys[read] for name in unread):
            raise
        raise InvalidKey(
            f"{error} The key in {read} was read, not the one in {' or '.join(unread)}: send only one."
        ) from None


async def _signer(accounts: Accounts, scope: Scope, headers: Headers) -> tuple[Key, sigv4.PendingSignature]:
    """Whose access key signed a request, as it says. Raises `SignatureRefused`."""
    signed = sigv4.read_signature(headers, now_us() / SECOND_US)
    try:
        key, secret = await accounts.signer(signed.access_key)
    except InvalidKey as error:
        raise SignatureRefused(
            "UnrecognizedClientException", f"The security token included in the request is invalid. {error}"
        ) from None
    return key, sigv4.PendingSignature(signed, secret, scope)


async def enter(
    gates: tuple[Accounts, ConsoleSessions], request_id: str, scopes: Sequence[str], scope: Scope
) -> Visit:
    """The visit of a request at its canonical path, whose key must have one of `scopes`.

    Raises `InvalidKey`, `SignatureRefused`, `NotPermitted` and `BadParameter`.
    """
    accounts, sessions = gates
    path, headers = scope["path"], Headers(scope=scope)
    pending = None
    # The bodies of these routes are all read in one place, which checks the signature.
    if is_amazon(path) and sigv4.is_signed(headers):
        key, pending = await _signer(accounts, scope, headers)
    else:
        key = await _authenticated(accounts, sessions, headers)
    visit = Visit(accounts, key, request_id, path[:200])
    visit.signature = pending.content if pending else None
    visit.require(*scopes)
    name = headers.get("idempotency-key")
    if name is not None and not (0 < len(name) <= _LONGEST_IDEMPOTENCY_KEY and name.isprintable()):
        raise BadParameter("Idempotency-Key", name, f"1 to {_LONGEST_IDEMPOTENCY_KEY} printable characters")
    visit.idempotency_key = name
    return visit


@contextmanager
def visiting(visit: Visit | None) -> Iterator[None]:
    """Everything within works for `visit`."""
    token = VISIT.set(visit)
    try:
        yield
    finally:
        VISIT.reset(token)


def verified(body: bytes, headers: Headers) -> bytes:
    """The content of a body as it was sent. Raises `SignatureRefused` unless it is what was signed."""
    visit = VISIT.get()
    if visit is not None and visit.signature is not None:
        content, visit.signature = visit.signature(body), None
        return content
    return b"".join(part for _, part in sigv4.chunks(body)) if sigv4.is_chunked(headers) else body


def seen(content: bytes) -> None:
    """Notes the body of this task's request, which tells a repetition from another request."""
    visit = VISIT.get()
    if visit is not None and visit.idempotency_key is not None:
        visit.body_digest = hashlib.sha256(content).hexdigest()


def reply_headers(visit: Visit | None) -> list[tuple[bytes, bytes]]:
    """What a reply says of the limits of its key, and whether it was given before."""
    if visit is None:
        return []
    headers = [] if visit.standing is None else limit_headers(visit.standing)
    return [*headers, (b"idempotent-replayed", b"true")] if visit.replayed else headers


def limit_headers(standing: Standing) -> list[tuple[bytes, bytes]]:
    """As OpenAI names and writes them."""
    headers: list[tuple[bytes, bytes]] = []
    for name, room in (("requests", standing.requests), ("tokens", standing.tokens)):
        if room is not None:
            headers += _headers(name, room)
    return headers


def _headers(name: str, room: Room) -> list[tuple[bytes, bytes]]:
    values = {"limit": room.limit, "remaining": room.remaining, "reset": duration(room.reset_s)}
    return [(f"x-ratelimit-{what}-{name}".encode(), str(value).encode()) for what, value in values.items()]


def duration(seconds: float) -> str:
    """`1m3s`, `250ms`: as OpenAI writes what Go prints."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
