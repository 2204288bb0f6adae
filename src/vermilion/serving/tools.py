"""Tool calls: how they are written into a text, and read out of it.

The form is that of Hermes and Qwen: `<tool_call>`, one JSON object with name and arguments, `</tool_call>`.
Where a call is demanded a grammar holds the answer to it; where it is the model's choice, a text that looks
like a call becomes one only if it names an offered tool and its arguments are JSON. So no client ever sees
half a call.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vermilion.types import Grammar

BEGIN, END = "<tool_call>", "</tool_call>"
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
class ToolCall:
    id: str
    name: str
    arguments: str
    """One JSON object, as text."""


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of one request and whether one must be called."""

    tools: tuple[Tool, ...]
    demanded: bool = False
    parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.name for tool in self.tools)

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


class CallReader:
    """Text in, text and calls out, however the text is cut."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._held = ""
        self._content = False
        self.num_calls = 0

    def push(self, text: str) -> list[str | ToolCall]:
        """What the text so far allows to be told, in order."""
        self._held += text
        out: list[str | ToolCall] = []
        while self._held:
            start = self._held.find(BEGIN)
            if start < 0:
                kept = _overlap(self._held, BEGIN)
                # White space before a call is not worth a chunk; it stays until something follows.
                safe = self._held[: len(self._held) - kept]
                told = safe if kept == 0 and safe.strip() else safe.rstrip()
                self._tell(out, told)
                self._held = self._held[len(told) :]
                return out
            end = self._held.find(END, start)
            if end < 0:
                told = self._held[:start].rstrip()
                self._tell(out, told)
                self._held = self._held[start:]
                return out
            self._tell(out, self._held[:start].rstrip())
            whole, self._held = self._held[start : end + len(END)], self._held[end + len(END) :]
            call = self._read(whole)
            if call is None:
                self._tell(out, whole)
            else:
                out.append(call)
                self.num_calls += 1
        return out

    def finish(self) -> list[str | ToolCall]:
        """What was held back, once the text has ended. Half a call is dropped: the reason says `length`."""
        rest, self._held = self._held, ""
        out: list[str | ToolCall] = []
        if BEGIN not in rest and not (self.num_calls and not rest.strip()):
            self._tell(out, rest)
        return out

    def _tell(self, out: list[str | ToolCall], text: str) -> None:
        if not self._content and self.num_calls == 0 and not text.strip():
            return
        if text:
            self._content = True
            out.append(text)

    def _read(self, whole: str) -> ToolCall | None:
        try:
            said = json.loads(whole[len(BEGIN) : -len(END)])
            name, arguments = said["name"], said["arguments"]
        except (ValueError, KeyError, TypeError):
            return None
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, dict):
            return None
        return ToolCall(f"call_{secrets.token_hex(12)}", name, json.dumps(arguments, ensure_ascii=False))


def read_calls(text: str, names: frozenset[str]) -> tuple[str, list[ToolCall]]:
    """The text beside the calls of a whole answer, and the calls."""
    reader = CallReader(names)
    pieces = [*reader.push(text), *reader.finish()]
    texts = [piece for piece in pieces if isinstance(piece, str)]
    return "".join(texts), [piece for piece in pieces if isinstance(piece, ToolCall)]


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)


def offered(tools: Sequence[Tool], wanted: str | None, parallel: bool) -> Toolbox | None:
    """`wanted`: None or "auto" for the model's choice, "none", "required", or a tool's name."""
    if not tools or wanted == "none":
        return None
    if wanted in (None, "auto", "required"):
        return Toolbox(tuple(tools), wanted == "required", parallel)
    return Toolbox(tuple(tool for tool in tools if tool.name == wanted), True, False)
