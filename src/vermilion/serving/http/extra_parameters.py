"""Azure's `extra-parameters`: what becomes of fields that its description of a chat does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vermilion.errors import BadParameter, BadRequest

EXTRA_PARAMETERS = "extra-parameters"
_POLICIES = ("pass-through", "drop", "error")
_KNOWN = frozenset(
    (
        "messages",
        "model",
        "frequency_penalty",
        "presence_penalty",
        "temperature",
        "top_p",
        "max_tokens",
        "stream",
        "stop",
        "seed",
        "response_format",
        "tools",
        "tool_choice",
        "modalities",
    )
)
"""Of the Azure AI Model Inference API, 2024-05-01-preview."""


class ExtraParameter(BadRequest):
    """A field that the caller itself wants refused."""

    status = 422

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name[:80]}: this is no parameter of Azure's chat, and the header extra-parameters says error; "
            "say pass-through to use it.",
            name[:80],
            "unsupported_parameter",
        )


def without_extra(given: Mapping[str, Any], policy: str | None) -> Mapping[str, Any]:
    """The fields that count, by the value of the header. Raises `BadRequest`."""
    if policy is None or policy == "pass-through" or "messages" not in given:
        return given
    if policy not in _POLICIES:
        raise BadParameter(EXTRA_PARAMETERS, policy, ", ".join(_POLICIES))
    extra = [name for name in given if name not in _KNOWN]
    if extra and policy == "error":
        raise ExtraParameter(extra[0])
    return {name: value for name, value in given.items() if name in _KNOWN}
