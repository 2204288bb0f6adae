"""A body as it goes to a server that has the model's template itself."""

from __future__ import annotations

from typing import Any

from vermilion.serving.generation.tools import Toolbox
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.wire.openai_bodies import CalledTool, ChatBody, Generation, Message


def forwarded(body: Generation, config: ServeConfig) -> dict[str, Any]:
    """What a completion asks for beside its text and what `Request` says of it."""
    preset = body.preset or config.default_preset or None
    asked = {"preset": preset, "decoding": body.decoding}
    return {name: value for name, value in asked.items() if value is not None}


def forwarded_chat(body: ChatBody, box: Toolbox | None, config: ServeConfig, begun: str) -> dict[str, Any]:
    """The conversation too, with its tools; `begun` is how the answer begins."""
    messages = [_message(message) for message in body.messages]
    asked: dict[str, Any] = {
        "reasoning_effort": body.reasoning_effort,
        "realtime": body.realtime,
        **_tools(body, box),
    }
    if begun:
        messages.append({"role": "assistant", "content": begun})
        asked |= {"continue_final_message": True, "add_generation_prompt": False}
    given = {name: value for name, value in asked.items() if value is not None}
    return {"messages": messages, **given, **forwarded(body, config)}


def _message(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        said["tool_calls"] = [_call(call, number) for number, call in enumerate(message.calls)]
    if message.tool_call_id is not None:
        said["tool_call_id"] = message.tool_call_id
    return said


def _call(call: CalledTool, number: int) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id or f"call_{number}", "type": "function", "function": function}


def _tools(body: ChatBody, box: Toolbox | None) -> dict[str, Any]:
    if box is None:
        return {}
    names = {tool.name for tool in box.tools}
    choice: object = None
    if box.demanded:
        named = {"type": "function", "function": {"name": box.tools[0].name}}
        choice = "required" if body.tool_choice == "required" else named
    offers = [
        offer.model_dump(exclude_none=True) for offer in body.tools or () if offer.function.name in names
    ]
    return {"tools": offers, "tool_choice": choice, "parallel_tool_calls": body.parallel_tool_calls}
