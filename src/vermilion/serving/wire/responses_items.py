"""A response of OpenAI's Responses API and the items in it, as JSON."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vermilion.serving.generation.choices import Choice, repeated
from vermilion.serving.generation.tools import Toolbox, read_calls
from vermilion.serving.wire.openai_replies import scored
from vermilion.serving.wire.responses_bodies import Item, ResponsesBody
from vermilion.serving.wire.responses_tools import ChosenTool, FlatTool, HostedTool, custom_input
from vermilion.types import Finish, TokenInfo, Usage

Tools = Mapping[str, FlatTool]
"""By the names that the model knows."""
_FORMAT = {"type": "json_schema", "name": "", "description": None, "schema": None, "strict": False}


def response_body(
    base: dict[str, Any], output: list[dict[str, Any]], finish: Finish | None
) -> dict[str, Any]:
    """The whole response; without `finish` as a stream begins it."""
    status = "in_progress" if finish is None else "incomplete" if finish.reason == "length" else "completed"
    return {
        **base,
        "status": status,
        "completed_at": int(time.time()) if status == "completed" else None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        **(repeated(finish) if finish else {}),
        "output": output,
        "usage": usage_body(finish.usage) if finish else None,
    }


def input_row(item: Item, id: str) -> dict[str, Any]:
    """An item of a conversation as its list shows it; `id` is for one that came without."""
    row = {"id": item.id or id, "type": item.type, "status": "completed"}
    if item.type == "message":
        kind = "output_text" if item.role == "assistant" else "input_text"
        more: dict[str, list[Any]] = {"annotations": []} if item.role == "assistant" else {}
        return {**row, "role": item.role, "content": [{"type": kind, "text": item.content, **more}]}
    said = {"function_call": "arguments", "custom_tool_call": "input"}.get(item.type, "output")
    named = {} if said == "output" else {"name": item.name}
    return {**row, "call_id": item.call_id, **named, said: getattr(item, said)}


def settings(id: str, model: str, body: ResponsesBody) -> dict[str, Any]:
    """What a response repeats of its request."""
    choice = body.tool_choice
    return {
        "id": id,
        "object": "response",
        "created_at": int(time.time()),
        "error": None,
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": model,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": body.temperature or 0.0,
        "presence_penalty": body.presence_penalty or 0.0,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "text": {"format": _format(body), "verbosity": (body.text and body.text.verbosity) or "medium"},
        "tool_choice": _choice(choice) if isinstance(choice, ChosenTool) else choice or "auto",
        "tools": [tool.model_dump() for tool in body.tools or () if not isinstance(tool, HostedTool)],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": body.truncation or "disabled",
    }


def _format(body: ResponsesBody) -> dict[str, Any]:
    given = body.text.format if body.text else None
    if given is None or given.type != "json_schema":
        return {"type": given.type if given else "text"}
    return {**_FORMAT, **given.model_dump(by_alias=True, exclude_none=True)}


def _choice(choice: ChosenTool) -> dict[str, Any]:
    if choice.type == "allowed_tools":
        return choice.model_dump(exclude={"name"})
    return {"type": choice.type, "name": choice.name}


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def part_body(text: str, tokens: Sequence[TokenInfo] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": scored(tokens)}


def message_item(
    id: str, text: str | None, status: str = "completed", tokens: Sequence[TokenInfo] = ()
) -> dict[str, Any]:
    content = [] if text is None else [part_body(text, tokens)]
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": content}


def call_item(tool: FlatTool, id: str, arguments: str, status: str = "completed") -> dict[str, Any]:
    """A call under the names that its tool was offered by."""
    named = (
        {"name": tool.name} if tool.namespace is None else {"name": tool.name, "namespace": tool.namespace}
    )
    if tool.custom:
        return {
            "id": f"ctc_{id}",
            "type": "custom_tool_call",
            "call_id": id,
            **named,
            "input": custom_input(arguments) if arguments else "",
            "status": status,
        }
    return {
        "id": f"fc_{id}",
        "type": "function_call",
        "call_id": id,
        **named,
        "arguments": arguments,
        "status": status,
    }


def output_of(choice: Choice, box: Toolbox | None, tools: Tools) -> list[dict[str, Any]]:
    """The items of a finished answer."""
    text, calls = read_calls(choice.text, box)
    status = "incomplete" if choice.reason == "length" else "completed"
    tokens = () if calls else choice.tokens
    items = [message_item(new_id("msg"), text, status, tokens)] if text or not calls else []
    return items + [call_item(tools[call.name], call.id, call.arguments) for call in calls]


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"
