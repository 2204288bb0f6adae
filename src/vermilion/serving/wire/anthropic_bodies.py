"""What Anthropic's Messages API takes, said again in the terms of chat completions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from vermilion.errors import BadRequest
from vermilion.serving.http.notices import note_ignored
from vermilion.serving.http.parsing import convert
from vermilion.serving.wire.content_blocks import block_text, blocks_text
from vermilion.serving.wire.lenient_values import flatten_content
from vermilion.serving.wire.openai_bodies import (
    MAX_MESSAGES,
    MOST_STOPS,
    WIRE,
    CalledFunction,
    CalledTool,
    ChatBody,
    Effort,
    Message,
    NamedFunction,
    NamedTool,
    OfferedTool,
    ResponseFormat,
    TextPart,
    ToolFunction,
)
from vermilion.serving.wire.sampling_ranges import Temperature, TopP

_Content = Annotated[str, BeforeValidator(flatten_content, json_schema_input_type=str | list[TextPart])]


def result_text(content: object) -> str:
    """What a tool returned; pictures and the like are named in their place."""
    return blocks_text(content, history=True)


class ToolUse(BaseModel):
    model_config = WIRE

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any] = Field(default_factory=dict)


class ToolResult(BaseModel):
    model_config = WIRE

    type: Literal["tool_result"]
    tool_use_id: str
    content: Annotated[
        str, BeforeValidator(result_text, json_schema_input_type=str | list[dict[str, Any]] | None)
    ] = ""


_Block = Annotated[TextPart | ToolUse | ToolResult, Field(discriminator="type")]


class Turn(BaseModel):
    model_config = WIRE

    role: Literal["user", "assistant", "system"]
    content: str | list[_Block] = Field(
        description="A string, or blocks: text, tool_use, tool_result, text documents, search results. Of "
        "the assistant's own, thinking is left out and what is no text becomes a few words in its place."
    )

    @model_validator(mode="before")
    @classmethod
    def readable(cls, given: Any) -> Any:
        """Turns blocks of other kinds into text, or refuses them by what they are."""
        if not isinstance(given, Mapping) or not isinstance(given.get("content"), list):
            return given
        history = given.get("role") != "user"
        blocks: list[Any] = []
        for block in given["content"]:
            if isinstance(block, Mapping) and block.get("type") in ("tool_use", "tool_result"):
                blocks.append(block)
            elif text := block_text(block, history):
                blocks.append({"type": "text", "text": text})
        return {**given, "content": blocks}

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(block.text for block in self.content if isinstance(block, TextPart))

    @property
    def calls(self) -> list[CalledTool]:
        blocks = [] if isinstance(self.content, str) else self.content
        return [
            CalledTool(
                id=block.id, function=CalledFunction(name=block.name, arguments=json.dumps(block.input))
            )
            for block in blocks
            if isinstance(block, ToolUse)
        ]

    @property
    def messages(self) -> list[Message]:
        """The same in OpenAI's terms: results are messages of their own, before what the user says."""
        blocks = [] if isinstance(self.content, str) else self.content
        results = [
            Message(role="tool", content=block.content, tool_call_id=block.tool_use_id)
            for block in blocks
            if isinstance(block, ToolResult)
        ]
        if results and not self.text:
            return results
        return [*results, Message(role=self.role, content=self.text, tool_calls=self.calls or None)]


class AnthropicTool(BaseModel):
    model_config = WIRE

    type: str | None = Field(
        None, description="`custom` unless set. Tools of other types run at Anthropic; they are left out."
    )
    name: str = Field(max_length=128)
    description: str | None = None
    input_schema: dict[str, Any] = Field(default_factory=dict)
    strict: bool | None = None

    @property
    def function(self) -> ToolFunction:
        """Raises `BadRequest`."""
        fields = {"name": self.name, "description": self.description, "strict": self.strict}
        return convert({**fields, "parameters": self.input_schema}, ToolFunction, {})


class ToolChoice(BaseModel):
    model_config = WIRE

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @property
    def parallel(self) -> bool | None:
        return None if self.disable_parallel_tool_use is None else not self.disable_parallel_tool_use


class OutputFormat(BaseModel):
    model_config = WIRE

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema", description="The answer is held to it by a grammar.")


class OutputConfig(BaseModel):
    model_config = WIRE

    format: OutputFormat | None = None
    effort: Effort | Literal["max"] | None = Field(None, description="As `reasoning_effort` of chat.")


class MessagesBody(BaseModel):
    """Body of POST /v1/messages."""

    model_config = WIRE

    model: str | None = Field(
        None, description="Id or alias of a served model, or any name of Claude's; the only one if left out."
    )
    max_tokens: int = Field(ge=1, description="Longest answer; cut to what fits.")
    messages: list[Turn] = Field(
        min_length=1,
        max_length=MAX_MESSAGES,
        description="The conversation; the model goes on from a last message of the assistant.",
    )
    system: _Content = Field("", description="A string or a list of text blocks.")
    stop_sequences: list[str] | None = Field(
        None, max_length=MOST_STOPS, description="The answer ends before any of these strings."
    )
    temperature: Temperature = Field(None, description="0, the default, is exact.")
    top_p: TopP = Field(None, description="Sample from this share of probability.")
    top_k: int | None = Field(None, ge=-1, description="Sample from so many tokens; 0 or -1: no limit.")
    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
    tools: list[AnthropicTool] | None = Field(None, max_length=256, description="Functions it may call.")
    tool_choice: ToolChoice | None = Field(
        None, description="`any` and `tool` are held to by a grammar; `auto` unless set."
    )
    output_config: OutputConfig | None = Field(None, description="`format`: a JSON schema; `effort`.")
    output_format: OutputFormat | None = Field(None, description="The earlier name of output_config.format.")
    preset: str | None = Field(None, description="As in /v1/chat/completions.")
    decoding: dict[Annotated[str, Field(max_length=40)], Any] | None = Field(
        None, description="As in /v1/chat/completions."
    )

    @property
    def begun(self) -> str:
        """How the answer begins; empty unless the caller has put words in the model's mouth."""
        last = self.messages[-1]
        # The API forbids, and the model cannot use, white space at the end of it.
        return last.text.rstrip() if last.role == "assistant" and not last.calls else ""

    @property
    def _openai_choice(self) -> Literal["auto", "none", "required"] | NamedTool | None:
        if self.tool_choice is None:
            return None
        if self.tool_choice.type == "tool":
            return NamedTool(function=NamedFunction(name=self.tool_choice.name or ""))
        return "required" if self.tool_choice.type == "any" else self.tool_choice.type

    @property
    def _offered_tools(self) -> list[OfferedTool]:
        own = [tool for tool in self.tools or () if tool.type in (None, "custom")]
        note_ignored(f"tools: {tool.type}" for tool in self.tools or () if tool not in own)
        return [OfferedTool(function=tool.function) for tool in own]

    @property
    def _response_format(self) -> ResponseFormat | None:
        given = (self.output_config.format if self.output_config else None) or self.output_format
        if given is None:
            return None
        if self.begun:
            raise BadRequest(
                "messages: the last one must be the user's where a format is asked for, since the format "
                "holds the answer from its first character.",
                "messages",
                "invalid_value",
            )
        return ResponseFormat.model_validate(
            {"type": "json_schema", "json_schema": {"name": "output", "schema": given.schema_}}
        )

    @property
    def chat(self) -> ChatBody:
        """The same in OpenAI's terms. Raises `BadRequest`."""
        turns = self.messages[:-1] if self.begun else self.messages
        if not turns:
            raise BadRequest(
                "messages: give a message of the user before the beginning of the answer.",
                "messages",
                "invalid_value",
            )
        messages = [Message(role="system", content=self.system)] if self.system else []
        messages += [message for turn in turns for message in turn.messages]
        choice, effort = self.tool_choice, self.output_config.effort if self.output_config else None
        return ChatBody.model_construct(
            messages=messages,
            tools=self._offered_tools,
            tool_choice=self._openai_choice,
            parallel_tool_calls=choice.parallel if choice else None,
            stop=[stop for stop in self.stop_sequences or () if stop],
            response_format=self._response_format,
            reasoning_effort="xhigh" if effort == "max" else effort,
            **{
                name: getattr(self, name)
                for name in ("model", "max_tokens", "temperature", "top_p", "top_k", "preset", "decoding")
            },
        )


class CountBody(MessagesBody):
    """Body of POST /v1/messages/count_tokens."""

    max_tokens: int = Field(1, ge=1, description="Of no meaning here.")
