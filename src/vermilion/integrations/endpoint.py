"""A running service as a client sees it: address, models, and whether it answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from vermilion.errors import BadParameter, EngineFailure

_TIMEOUT_S = 60.0
_LOADING_TIMEOUT_S = 300.0
_POLL_S = 0.5
_CODER_NAME = "mercury-coder"
"""The name by which editors recognise a model that predicts edits."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a client's configuration needs to know."""

    root: str
    """Scheme, host and port, without a path: http://127.0.0.1:8000."""
    key: str
    model: str
    coder: str
    """The name under which editors should know the model: mercury-coder where the service answers to it."""
    context_length: int
    max_output: int

    @property
    def v1(self) -> str:
        return f"{self.root}/v1"


@dataclass(frozen=True, slots=True)
class Check:
    """One live request and how it went."""

    route: str
    ok: bool
    seconds: float
    detail: str


def discover(
    url: str, key: str, model: str | None = None, waiting: Callable[[str], None] | None = None
) -> Endpoint:
    """Ask the service at `url` (with or without /v1) what it serves; `waiting` is told if it still loads.

    Raises BadParameter for an address that is none or a model that is not served, EngineFailure where
    nothing answers.
    """
    root = _root(url)
    if not (key.isascii() and key.isprintable()):
        raise BadParameter("--key", "***", "the letters, digits and signs that the service showed")
    by_id = {entry["id"]: entry for entry in _served(root, key, waiting)}
    chosen = by_id.get(model) if model else next(iter(by_id.values()), None)
    if chosen is None:
        raise BadParameter("--model", model, ", ".join(by_id) or "nothing: no model is served")
    return Endpoint(
        root=root,
        key=key,
        model=chosen["id"],
        coder=_CODER_NAME if _answers_to(root, key, _CODER_NAME) else chosen["id"],
        context_length=int(chosen.get("context_length") or 8192),
        max_output=int(chosen.get("max_output_length") or 1024),
    )


def _root(url: str) -> str:
    """Scheme, host and port of an address; raises BadParameter where it is none."""
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or not url.isascii() or not url.isprintable() or " " in url:
        raise BadParameter("--url", url, "an address such as http://127.0.0.1:8000")
    return f"{parts.scheme}://{parts.netloc}"


def _listed(root: str, key: str, waiting: Callable[[str], None] | None) -> bytes:
    """The service's list of models, once it is loaded."""
    deadline_s = time.monotonic() + _LOADING_TIMEOUT_S
    while True:
        try:
            return _call(f"{root}/v1/models", key)
        except HTTPError as error:
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline_s:
                raise
        if waiting is not None:
            waiting(f"{root} still loads its model ...")
            waiting = None
        time.sleep(_POLL_S)


def _served(root: str, key: str, waiting: Callable[[str], None] | None) -> list[Any]:
    """Entries of the service's list of models. Raises EngineFailure, which says what to do."""
    try:
        served: list[Any] = json.loads(_listed(root, key, waiting))["data"]
        if all(isinstance(entry["id"], str) for entry in served):
            return served
    except HTTPError as error:
        raise EngineFailure(f"{root} did not list its models: {_reason(error)}") from None
    except OSError as error:
        port = urlsplit(root).port
        start = "vermilion serve" + (f" --port {port}" if port not in (None, 8000) else "")
        raise EngineFailure(
            f"Nothing answers at {root} ({_cause(error)}). Start it with `{start}`, or say where it runs: "
            "--url http://HOST:PORT"
        ) from None
    except (HTTPException, ValueError, KeyError, TypeError):
        pass
    raise EngineFailure(f"{root}/v1/models is no list of models; is Vermilion running there?")


def check(endpoint: Endpoint, route: str, body: Mapping[str, Any]) -> Check:
    """POST `body` to `route`; a reply of status 200 is good. Never raises for what the service does."""
    started_s = time.monotonic()
    try:
        reply = _call(f"{endpoint.root}{route}", endpoint.key, body)
    except HTTPError as error:
        return Check(route, False, time.monotonic() - started_s, _reason(error))
    except (OSError, HTTPException) as error:
        return Check(route, False, time.monotonic() - started_s, _cause(error))
    seconds = time.monotonic() - started_s
    return Check(route, True, seconds, f"{len(reply)} bytes")


def _answers_to(root: str, key: str, name: str) -> bool:
    try:
        _call(f"{root}/v1/models/{name}", key)
    except (OSError, HTTPException):
        return False
    return True


def _call(url: str, key: str, body: Mapping[str, Any] | None = None) -> bytes:
    # A proxy of the environment has no business between a user and a service of their own.
    opener = build_opener(ProxyHandler({}))
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    data = None if body is None else json.dumps(body).encode()
    with opener.open(Request(url, data, headers), timeout=_TIMEOUT_S) as reply:
        content: bytes = reply.read()
    return content


def _cause(error: Exception) -> str:
    reason = error.reason if isinstance(error, URLError) else error
    return str(getattr(reason, "strerror", None) or reason or type(reason).__name__)


def _reason(error: HTTPError) -> str:
    """The message of an error reply, in any of the usual formats, with advice."""
    try:
        said = json.loads(error.read())["error"]
        told = f"{error.code}: {said['message'] if isinstance(said, Mapping) else said}"
    except (ValueError, KeyError, TypeError, OSError):
        told = f"{error.code} {error.reason}"
    help = {
        401: " Give a key of it with --key, or in VERMILION_API_KEY.",
        503: " Try again in a moment.",
    }
    return told + help.get(error.code, "")
