"""By which name a request asks for a model: in its body, its address or a header, as each protocol has it."""

from __future__ import annotations

from fastapi import Request as HttpRequest
from pydantic import BaseModel

from vermilion.serving.generation.cloud_names import spellings

_IN_PATH = ("/model/", "/endpoints/", "/v1/models/")
"""Addresses whose `id` or `name` is a model's."""
_HEADERS = ("x-amzn-sagemaker-target-model", "x-amzn-sagemaker-inference-component")
_LATEST = ":latest"
"""What Ollama's clients put behind a name."""


def asked_names(http: HttpRequest, body: BaseModel | None) -> list[str]:
    """The name in all spellings that the clouds' and Ollama's clients have for it, likeliest first; empty
    where none is given."""
    name = _asked_name(http, body)
    if not name:
        return []
    return list(dict.fromkeys([name, name.removesuffix(_LATEST), *spellings(name)]))


def _asked_name(http: HttpRequest, body: BaseModel | None) -> str:
    found = [http.headers.get(header) for header in _HEADERS]
    found.append(http.scope.get("deployment"))
    if http.scope["path"].startswith(_IN_PATH):
        found += [http.path_params.get(name) for name in ("id", "name")]
    found.append(getattr(body, "model", None))
    if http.scope["path"].startswith("/api/"):
        found.append(getattr(body, "name", None))  # as older clients of Ollama have it
    return next((name for name in found if isinstance(name, str) and name), "")
