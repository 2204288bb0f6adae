"""The tools of OpenAI's Responses API as functions that a model can call.

Tools of a namespace are called by both names; a custom tool is a function of one text. Tools that run at
OpenAI, such as web search, are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from vermilion.errors import BadParameter
from vermilion.serving.http.notices import note_ignored
from vermilion.serving.wire.openai_bodies import WIRE, NamedFunction, NamedTool, ToolFunction

_BETWEEN = "__"
_OWN_KINDS = ("function", "custom", "namespace")
_CUSTOM_INPUT = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}


class FunctionTool(ToolFunction):
    type: Literal["function"] = "function"


class CustomTool(BaseModel):
    """A function of one text."""

    model_config = WIRE

    type: Literal["custom"]
    name: str = Field(min_length=1, max_length=128, pattern=r"^[^\s\"\\<>]+$")
    description: str | None = None
    format: dict[str, Any] | None = Field(None, description="A grammar is told to the model, not held to.")

    @property
    def function(self) -> ToolFunction:
        about = [self.description or ""]
        if isinstance(definition := (self.format or {}).get("definition"), str):
            about.append(f"The input must fit this grammar:\n{definition}")
        return ToolFunction(
            name=self.name, description="\n\n".join(filter(None, about)), parameters=_CUSTOM_INPUT
        )


class NamespaceTool(BaseModel):
    """Tools under a name of their own."""

    model_config = WIRE

    type: Literal["namespace"]
    name: str = Field(min_length=1, max_length=128, pattern=r"^[^\s\"\\<>]+$")
    description: str | None = None
    tools: list[Annotated[FunctionTool | CustomTool, Field(discriminator="type")]] = Field(max_length=256)


class HostedTool(BaseModel):
    """One that runs at OpenAI; nothing here can, so the model is not told of it."""

    model_config = WIRE

    type: str


def _kind(given: object) -> str:
    kind = given.get("type", "function") if isinstance(given, dict) else getattr(given, "type", None)
    return kind if kind in _OWN_KINDS else "hosted"


ResponseTool = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[NamespaceTool, Tag("namespace")]
    | Annotated[HostedTool, Tag("hosted")],
    Discriminator(_kind),
]


class ChosenTool(BaseModel):
    """One tool that must be called; or with `allowed_tools`, those that may or must be."""

    model_config = WIRE

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: list[dict[str, Any]] = Field(default_factory=list, max_length=256)


@dataclass(frozen=True, slots=True)
class FlatTool:
    """One tool as the model knows it, and what its caller calls it."""

    function: ToolFunction
    name: str
    namespace: str | None = None
    custom: bool = False


def called_name(name: str, namespace: str | None) -> str:
    """What the model calls a tool of a namespace."""
    return f"{namespace.rstrip('_')}{_BETWEEN}{name}" if namespace else name


def flattened(tools: Iterable[ResponseTool]) -> list[FlatTool]:
    """Every tool that can be called here; the reply's headers name the others."""
    flat: list[FlatTool] = []
    for tool in tools:
        if isinstance(tool, NamespaceTool):
            flat += [_flat(one, tool) for one in tool.tools]
        elif isinstance(tool, HostedTool):
            note_ignored([f"tools: {tool.type}"])
        else:
            flat.append(_flat(tool, None))
    return flat


def _flat(tool: FunctionTool | CustomTool, within: NamespaceTool | None) -> FlatTool:
    custom = isinstance(tool, CustomTool)
    function = tool.function if isinstance(tool, CustomTool) else tool
    namespace = within.name if within else None
    named = ToolFunction.model_construct(
        **{**dict(function), "name": called_name(tool.name, namespace), "type": None}
    )
    return FlatTool(named, tool.name, namespace, custom)


def chosen(
    choice: str | ChosenTool | None, tools: Sequence[FlatTool]
) -> tuple[list[FlatTool], str | NamedTool | None]:
    """The tools that are offered, and the choice in the terms of chat. Raises `BadParameter`."""
    if not isinstance(choice, ChosenTool):
        return list(tools), choice
    known = ", ".join(tool.function.name for tool in tools) or "no name: there are no tools"
    if choice.type == "allowed_tools":
        names = [one.get("name") for one in choice.tools if one.get("type") in ("function", "custom")]
        for name in names:
            if not any(_answers(tool, name) for tool in tools):
                raise BadParameter("tool_choice.tools", name, known)
        return [tool for tool in tools if any(_answers(tool, name) for name in names)], choice.mode
    found = next((tool for tool in tools if _answers(tool, choice.name)), None)
    if choice.type not in ("function", "custom") or found is None:
        raise BadParameter("tool_choice", choice.name or choice.type, known)
    return list(tools), NamedTool(function=NamedFunction(name=found.function.name))


def _answers(tool: FlatTool, name: object) -> bool:
    return name in (tool.name, tool.function.name)


def custom_arguments(text: str) -> str:
    """The input of a custom tool as the arguments of its function."""
    return json.dumps({"input": text}, ensure_ascii=False)


def custom_input(arguments: str) -> str:
    """The reverse; arguments that were cut off stay as they are."""
    try:
        text = json.loads(arguments)["input"]
    except (ValueError, KeyError, TypeError):
        return arguments
    return text if isinstance(text, str) else arguments
