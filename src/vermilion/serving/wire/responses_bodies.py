"""What OpenAI's Responses API takes, said again in the terms of chat completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, FiniteFloat

from vermilion.errors import BadRequest
from vermilion.serving.wire.openai_bodies import (
    WIRE,
    CalledFunction,
    CalledTool,
    ChatBody,
    Effort,
    JsonSchema,
    Message,
    NamedFunction,
    NamedTool,
    OfferedTool,
    ResponseFormat,
    ToolFunction,
    flatten_content,
)

_Content = Annotated[
    str, BeforeValidator(flatten_content, json_schema_input_type=str | list[dict[str, Any]] | None)
]


class Item(BaseModel):
    """A message, a call that was made, or what it returned."""

    model_config = WIRE

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["user", "assistant", "system", "developer"] = "user"
    content: _Content = ""
    call_id: str | None = None
    name: str | None = None
    arguments: str = "{}"
    output: _Content = ""


def as_items(given: object) -> object:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


class ResponseTool(ToolFunction):
    """A function; the API's own tools (web search and so on) are not here."""

    type: Literal["function"] = "function"


class ChosenTool(BaseModel):
    model_config = WIRE

    type: Literal["function"]
    name: str


class Format(JsonSchema):
    type: Literal["text", "json_object", "json_schema"] = "text"


class TextSettings(BaseModel):
    model_config = WIRE

    format: Format | None = None


class Reasoning(BaseModel):
    model_config = WIRE

    effort: Effort | None = None


class ResponsesBody(BaseModel):
    """Body of POST /v1/responses."""

    model_config = WIRE

    model: str | None = Field(None, description="Id or alias of a served model; the only one if left out.")
    input: Annotated[list[Item], BeforeValidator(as_items, json_schema_input_type=str | list[Item])] = Field(
        description="A string, or items: messages, function_call, function_call_output."
    )
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: int | None = Field(None, ge=1, description="Longest answer; cut to what fits.")
    temperature: FiniteFloat | None = Field(None, ge=0, le=2, description="0, the default, is exact.")
    top_p: FiniteFloat | None = Field(None, ge=0, le=1, description="Sample from this share of probability.")
    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
    tools: list[ResponseTool] | None = Field(None, max_length=256, description="Functions it may call.")
    tool_choice: Literal["auto", "none", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = Field(None, description="`format`: text, json_object or json_schema.")
    reasoning: Reasoning | None = Field(None, description="`effort`, as `reasoning_effort` of chat.")
    previous_response_id: str | None = Field(None, description="Refused: responses are not stored.")
    metadata: dict[str, str] | None = None
    preset: str | None = Field(None, description="As in /v1/chat/completions.")
    decoding: dict[Annotated[str, Field(max_length=40)], Any] | None = Field(
        None, description="As in /v1/chat/completions."
    )

    @property
    def chat(self) -> ChatBody:
        """The same as a chat completion. Raises `BadRequest`."""
        if self.previous_response_id is not None:
            raise BadRequest(
                "Responses are not stored here; send the conversation so far as `input`.",
                "previous_response_id",
                "unsupported_parameter",
            )
        chosen = self.tool_choice
        if isinstance(chosen, ChosenTool):
            choice: Any = NamedTool(function=NamedFunction(name=chosen.name))
        else:
            choice = chosen
        return ChatBody.model_construct(
            messages=self._messages(),
            tools=[
                OfferedTool(function=ToolFunction(**tool.model_dump(exclude={"type"})))
                for tool in self.tools or ()
            ],
            tool_choice=choice,
            response_format=self._format(),
            max_completion_tokens=self.max_output_tokens,
            reasoning_effort=self.reasoning.effort if self.reasoning else None,
            **{
                name: getattr(self, name)
                for name in ("model", "temperature", "top_p", "parallel_tool_calls", "preset", "decoding")
            },
        )

    def _messages(self) -> list[Message]:
        messages = [Message(role="system", content=self.instructions)] if self.instructions else []
        for item in self.input:
            if item.type == "message":
                messages.append(Message(role=item.role, content=item.content))
            elif item.type == "function_call_output":
                messages.append(Message(role="tool", content=item.output, tool_call_id=item.call_id))
            elif item.type == "function_call":
                function = CalledFunction(name=item.name or "", arguments=item.arguments)
                call = CalledTool(id=item.call_id, function=function)
                messages.append(Message(role="assistant", content="", tool_calls=[call]))
        if not messages:
            raise BadRequest("input: holds no message; give at least one.", "input")
        return messages

    def _format(self) -> ResponseFormat | None:
        given = self.text.format if self.text else None
        if given is None or given.type == "text":
            return None
        if given.type == "json_object":
            return ResponseFormat.model_validate({"type": "json_object"})
        schema = given.model_dump(by_alias=True, exclude={"type"})
        return ResponseFormat.model_validate({"type": "json_schema", "json_schema": schema})
