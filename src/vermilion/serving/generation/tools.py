"""The tools of a request: how the model is told of them, and the grammar of an answer that must call.

`calls.py` reads the calls out of the answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vermilion.serving.generation.tool_calls import BEGIN, END, ToolCall, ToolCallReader, together
from vermilion.types import Grammar

MOST_CALLS = 4
"""Calls that one answer may be held to, where several are allowed."""
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True, slots=True)
class Tool:
    """What may be called. `parameters` is a JSON schema of an object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of one request and whether one must be called."""

    tools: tuple[Tool, ...]
    demanded: bool = False
    parallel: bool = True

    def reader(self) -> ToolCallReader:
        """Reads one answer."""
        return ToolCallReader(frozenset(tool.name for tool in self.tools), self.demanded)

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must be where a call is demanded (llguidance's Lark dialect)."""
        if not self.demanded:
            return None
        calls = " | ".join(f"call{number}" for number in range(len(self.tools)))
        more = f' ("\\n" call){{0,{MOST_CALLS - 1}}}' if self.parallel else ""
        rules = [f"start: call{more}", f"call: {calls}"]
        for number, tool in enumerate(self.tools):
            rules.append(f'call{number}: "{BEGIN}\\n" body{number} "\\n{END}"')
            rules.append(f"body{number}: %json {json.dumps(_call_schema(tool))}")
        return Grammar("lark", "\n".join(rules))

    def prompt(self) -> str:
        """How a model whose template knows no tools is told of them."""
        offered = "\n".join(
            json.dumps(
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": tool.parameters,
                    },
                },
                ensure_ascii=False,
            )
            for tool in self.tools
        )
        return (
            "You may call one or more functions to assist with the user query. The functions:\n"
            f"<tools>\n{offered}\n</tools>\n\n"
            "For each call return a JSON object with the function's name and arguments:\n"
            f'{BEGIN}\n{{"name": <function-name>, "arguments": <arguments-object>}}\n{END}'
        )


def _call_schema(tool: Tool) -> dict[str, Any]:
    parameters = {"type": "object", **tool.parameters}
    definitions: dict[str, Any] = {
        name: parameters.pop(name) for name in ("$defs", "definitions") if name in parameters
    }
    parameters.pop("$schema", None)
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        # Keywords that no grammar can hold are descriptions to a tool that does not insist.
        "x-guidance": {**_COMPACT, "lenient": not tool.strict},
        **definitions,
    }


def written(calls: Iterable[tuple[str, str]]) -> str:
    """Earlier calls (name, arguments as JSON) in the form that the model is asked for."""
    return "\n".join(
        f'{BEGIN}\n{{"name": {json.dumps(name)}, "arguments": {arguments or "{}"}}}\n{END}'
        for name, arguments in calls
    )


def read_calls(text: str, box: Toolbox | None) -> tuple[str, list[ToolCall]]:
    """The text beside the calls of a whole answer, and the calls; all is text where none could be made."""
    if box is None:
        return text, []
    reader = box.reader()
    return together([*reader.push(text), *reader.finish()])


def offered(tools: Sequence[Tool], wanted: str | None, parallel: bool) -> Toolbox | None:
    """`wanted`: None or "auto" for the model's choice, "none", "required", or a tool's name."""
    if not tools or wanted == "none":
        return None
    if wanted in (None, "auto", "required"):
        return Toolbox(tuple(tools), wanted == "required", parallel)
    return Toolbox(tuple(tool for tool in tools if tool.name == wanted), True, False)
