"""The tools of a request: how the model is told of them, and the grammar of an answer that must call.

`tool_calls.py` reads the calls out of the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vermilion.data.conversations import CALL_BEGIN, CALL_END, described
from vermilion.errors import BadRequest
from vermilion.serving.generation.schemas import enforceable
from vermilion.serving.generation.tool_calls import ToolCall, ToolCallReader, together
from vermilion.serving.http.notices import note_ignored
from vermilion.types import Grammar

MOST_CALLS = 4
"""Calls that one answer may be held to, where several are allowed."""
_NO_RULE = re.compile(r"[^a-z0-9_]")
"""What cannot stand in the name of a rule."""
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
        return ToolCallReader(frozenset(tool.name for tool in self.tools), self.held)

    @property
    def held(self) -> bool:
        """Whether a grammar holds the calls of an answer."""
        return self.demanded or any(tool.strict for tool in self.tools)

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must be (llguidance's Lark dialect): calls where they are demanded; with a strict
        tool any text with calls in it that fit. Raises `BadRequest` for a strict tool that cannot be held.
        """
        if not self.held:
            return None
        names = " | ".join(f"call{number}" for number in range(len(self.tools)))
        most = MOST_CALLS if self.parallel else 1
        opening = f'"{CALL_BEGIN}\\n"' if self.demanded else 'opening "\\n"'
        rules = [f"call: {names}"]
        if self.demanded:
            rules.insert(0, "start: call" + (f' ("\\n" call){{0,{most - 1}}}' if self.parallel else ""))
        else:
            # The lazy rule ends as soon as a call begins, so that none hides in the text.
            rules.insert(0, f"start: call{{0,{most}}} TEXT")
            rules.append(f'opening[lazy]: /(.|\\n)*/ "{CALL_BEGIN}"')
            rules.append(f"TEXT: /(.|\\n)*/ & ~/(.|\\n)*{CALL_BEGIN}(.|\\n)*/")
        for number, tool in enumerate(self.tools):
            # A refusal names the rule, and so the tool.
            body = f"body{number}_{_NO_RULE.sub('_', tool.name.lower())}"
            rules.append(f'call{number}: {opening} {body} "\\n{CALL_END}"')
            rules.append(f"{body}: %json {json.dumps(_call_schema(tool))}")
        return Grammar("lark", "\n".join(rules), closes=self.demanded)

    def prompt(self) -> str:
        """How a model whose template knows no tools is told of them."""
        return described(
            {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
            for tool in self.tools
        )


def _call_schema(tool: Tool) -> dict[str, Any]:
    # A function without parameters is called with none.
    parameters = dict(tool.parameters) or {"type": "object", "properties": {}}
    held = enforceable(parameters, tool.name, "tools", tool.strict)
    kinds = held.get("type", "object")
    if "object" not in (kinds if isinstance(kinds, list) else [kinds]):
        if tool.strict:
            message = f"tools: {tool.name}: #: type cannot be {kinds}: arguments are an object."
            raise BadRequest(message, "tools", "unsupported_schema")
        note_ignored([f"{tool.name}#: type"])
        held = {}
    definitions = held.pop("$defs", {})
    held["type"] = "object"
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": held},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        "x-guidance": {**_COMPACT, "lenient": not tool.strict},
        "$defs": definitions,
    }


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
