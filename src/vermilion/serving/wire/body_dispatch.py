"""Routes of containers, which have one address for everything: the body's fields say which route is meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from vermilion.errors import BadRequest
from vermilion.serving.generation import decisions, holes
from vermilion.serving.http.parsing import convert
from vermilion.serving.http.request_context import RequestContext
from vermilion.serving.http.routes import Route
from vermilion.serving.wire import anthropic, mercury, openai, responses

_ROUTES: dict[str, Route] = {
    route.path: route
    for module in (openai, mercury, decisions, holes, responses, anthropic)
    for route in module.ROUTES
}
_BY_FIELD = (
    ("anthropic_version", "/v1/messages"),
    ("questions", "/v1/decisions"),
    ("parts", "/v1/infill"),
    ("suffix", "/v1/fim/completions"),
    ("prompt", "/v1/completions"),
    ("input", "/v1/responses"),
)
"""The first field that is given tells the route; `messages` are told apart by what they say."""
_BY_MARK = (("<|code_to_edit|>", "/v1/edit/completions"), ("<|original_code|>", "/v1/apply/completions"))
_FIELDS = ", ".join(("messages", *(name for name, _ in _BY_FIELD)))


class AnyBody(BaseModel):
    """A body of any route: `messages` of a chat or of an edit, which its tags tell, `prompt` of a completion,
    with `suffix` of a gap, `questions` of decisions, `parts` of an infill, `input` of a response,
    `anthropic_version` of Anthropic's messages."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str | None = Field(None, description="Where the address names none.")

    @property
    def given(self) -> dict[str, Any]:
        fields = {**(self.model_extra or {}), "model": self.model}
        return {name: value for name, value in fields.items() if value is not None}


def route_of(given: Mapping[str, Any]) -> Route:
    """Raises `BadRequest` for a body of none."""
    for name, path in _BY_FIELD:
        if name in given:
            return _ROUTES[path]
    if "messages" not in given:
        raise BadRequest(
            f"The body must have one of the fields {_FIELDS}.", "messages", "missing_required_parameter"
        )
    said = _last_said(given["messages"])
    return _ROUTES[next((path for mark, path in _BY_MARK if mark in said), "/v1/chat/completions")]


def _last_said(messages: object) -> str:
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, dict) and last.get("role") == "user" else None
    return content if isinstance(content, str) else ""


async def dispatched(context: RequestContext, given: Mapping[str, Any]) -> Response:
    """What the route meant by `given` answers. Raises what it raises."""
    route = route_of(given)
    assert route.body is not None
    kind = route.body
    body = await context.offload(lambda: convert(given, kind, {}))
    return await route.handler(context, body)
