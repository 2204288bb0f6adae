"""A conversation with tools as chat templates know it. The service and training tell it alike, so that a
model meets what it was trained on.

Calls have the form of Hermes and Qwen: `<tool_call>`, one JSON object with name and arguments,
`</tool_call>`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CALL_BEGIN, CALL_END = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Said:
    """One message."""

    role: str
    content: str
    calls: tuple[tuple[str, str], ...] = ()
    """Name and arguments (one JSON object, as text) of each."""

    @property
    def text(self) -> str:
        """All of it as the model writes it."""
        if not self.calls:
            return self.content
        return "\n".join([*([self.content] if self.content else []), written(self.calls)])

    def told(self, native: bool) -> dict[str, Any]:
        """As a template takes it: without roles that came later, calls and results written out unless the
        template does that itself (`native`)."""
        if native:
            role = "tool" if self.role == "function" else self.role
            told: dict[str, Any] = {"role": role, "content": self.content}
            if self.calls:
                told["tool_calls"] = [
                    {"type": "function", "function": {"name": name, "arguments": _loaded(arguments)}}
                    for name, arguments in self.calls
                ]
            return told
        if self.role in ("tool", "function"):
            return {"role": "user", "content": f"<tool_response>\n{self.content}\n</tool_response>"}
        return {"role": "system" if self.role == "developer" else self.role, "content": self.text}


def written(calls: Iterable[tuple[str, str]]) -> str:
    """Calls (name, arguments as JSON) in the form that the model is asked for."""
    return "\n".join(
        f'{CALL_BEGIN}\n{{"name": {json.dumps(name)}, "arguments": {arguments or "{}"}}}\n{CALL_END}'
        for name, arguments in calls
    )


def described(functions: Iterable[Mapping[str, Any]]) -> str:
    """How a model whose template knows no tools is told of them"""
    offered = "\n".join(
        json.dumps(
            {
                "type": "function",
                "function": {
                    "name": function["name"],
                    "description": function.get("description") or "",
                    "parameters": function.get("parameters") or {},
                },
            },
            ensure_ascii=False,
        )
        for function in functions
    )
    return (
        "You may call one or more functions to assist with the user query. The functions:\n"
        f"<tools>\n{offered}\n</tools>\n\n"
        "For each call return a JSON object with the function's name and arguments:\n"
        f'{CALL_BEGIN}\n{{"name": <function-name>, "arguments": <arguments-object>}}\n{CALL_END}'
    )


def schema_hint(schema: str) -> str:
    """How a model is told of the JSON schema that its answer will be held to."""
    return f"Answer with one JSON value that fits this schema:\n{schema}"


def instructed(messages: Sequence[dict[str, Any]], hint: str) -> list[dict[str, Any]]:
    """`messages` with `hint` at the end of the system's words."""
    if messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{hint}".strip()}, *messages[1:]]
    return [{"role": "system", "content": hint}, *messages]


def _loaded(arguments: str) -> object:
    """Templates write arguments out as JSON themselves; what is none stays text."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
