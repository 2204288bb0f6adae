"""What OpenAI's Responses API takes, said again in the terms of chat completions."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from vermilion.errors import BadRequest
from vermilion.serving.wire.content_blocks import blocks_text
from vermilion.serving.wire.openai_bodies import (
    MAX_MESSAGES,
    WIRE,
    CalledFunction,
    CalledTool,
    ChatBody,
    Effort,
    JsonSchema,
    Message,
    OfferedTool,
    ResponseFormat,
)
from vermilion.serving.wire.responses_tools import (
    ChosenTool,
    FlatTool,
    ResponseTool,
    called_name,
    chosen,
    custom_arguments,
    flattened,
)
from vermilion.serving.wire.sampling_ranges import (
    FrequencyPenalty,
    NumLogprobs,
    PresencePenalty,
    Temperature,
    TopP,
)

LOGPROBS = "message.output_text.logprobs"
_CALLS = ("function_call", "custom_tool_call")
_OUTPUTS = ("function_call_output", "custom_tool_call_output")
_READ = ("message", *_CALLS, *_OUTPUTS, "item_reference")


class Item(BaseModel):
    """A message, a call that was made, what it returned, or an item of a stored response by its id.

    Items of other types, such as reasoning and what tools at OpenAI did, are left out.
    """

    model_config = WIRE

    type: str = "message"
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"] = "user"
    content: Annotated[str, Field(json_schema_extra={"description": "A string or text parts."})] = ""
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str = "{}"
    input: str = ""
    output: str = ""

    @model_validator(mode="before")
    @classmethod
    def readable(cls, given: Any) -> Any:
        """Turns parts into text, or refuses those of a user's message that are none."""
        if not isinstance(given, Mapping):
            return given
        kind = given.get("type") or ("message" if "role" in given or "id" not in given else "item_reference")
        if kind not in _READ:
            return {"type": kind}
        item = {**given, "type": kind}
        if kind == "message":
            item["content"] = blocks_text(given.get("content"), history=given.get("role") == "assistant")
        if "output" in given:
            item["output"] = blocks_text(given["output"], history=True)
        return item


def as_items(given: object) -> object:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


class Format(JsonSchema):
    type: Literal["text", "json_object", "json_schema"] = "text"


class TextSettings(BaseModel):
    model_config = WIRE

    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="Repeated in the reply.")


class Reasoning(BaseModel):
    model_config = WIRE

    effort: Effort | None = None


Items = Annotated[list[Item], BeforeValidator(as_items, json_schema_input_type=str | list[Item])]


class ResponsesBody(BaseModel):
    """Body of POST /v1/responses."""

    model_config = WIRE

    model: str | None = Field(None, description="Id or alias of a served model; the only one if left out.")
    input: Items = Field(
        [],
        max_length=MAX_MESSAGES,
        description="A string, or items: messages, calls and what they returned, references to items.",
    )
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: int | None = Field(None, ge=1, description="Longest answer; cut to what fits.")
    temperature: Temperature = Field(None, description="0, the default, is exact.")
    top_p: TopP = Field(None, description="Sample from this share of probability.")
    presence_penalty: PresencePenalty = Field(
        None, description="Taken off the logits of tokens that stand in the answer."
    )
    frequency_penalty: FrequencyPenalty = Field(
        None, description="The same, for each time that a token stands there."
    )
    top_logprobs: NumLogprobs = Field(None, description="So many likeliest tokens beside each.")
    include: list[str] | None = Field(None, max_length=64, description=f"`{LOGPROBS}`; others do nothing.")
    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
    tools: list[ResponseTool] | None = Field(
        None,
        max_length=256,
        description="Functions, custom tools and namespaces of them; others are left out.",
    )
    tool_choice: Literal["auto", "none", "required"] | ChosenTool | None = Field(
        None, description="Whether the answer may or must call a tool, or which one."
    )
    parallel_tool_calls: bool | None = Field(None, description="Whether an answer may hold several calls.")
    max_tool_calls: int | None = Field(None, ge=1, description="For tools at OpenAI; repeated in the reply.")
    text: TextSettings | None = Field(None, description="`format`: text, json_object or json_schema.")
    reasoning: Reasoning | None = Field(None, description="`effort`, as `reasoning_effort` of chat.")
    store: bool | None = Field(None, description="Keep the response for a while, in memory; so unless false.")
    previous_response_id: str | None = Field(
        None, max_length=128, description="Go on from this stored response; its instructions are not kept."
    )
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="`auto` leaves out the oldest items of a conversation that does not fit."
    )
    background: bool | None = Field(None, description="Refused: an answer comes on its own connection.")
    metadata: dict[str, str] | None = Field(None, description="Repeated in the reply.")
    safety_identifier: str | None = Field(None, max_length=64, description="Repeated in the reply.")
    prompt_cache_key: str | None = Field(None, max_length=64, description="Repeated in the reply.")
    conversation: Any = Field(None, description="Refused; use previous_response_id.")
    prompt: Any = Field(None, description="Refused: prompts are not stored here.")
    preset: str | None = Field(None, description="As in /v1/chat/completions.")
    decoding: dict[Annotated[str, Field(max_length=40)], Any] | None = Field(
        None, description="As in /v1/chat/completions."
    )

    @property
    def flat_tools(self) -> list[FlatTool]:
        """The tools that are offered to the model. Raises `BadParameter`."""
        return chosen(self.tool_choice, flattened(self.tools or ()))[0]

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    @property
    def chat(self) -> ChatBody:
        """The same as a chat completion. Raises `BadRequest`."""
        for name, given in (
            ("background", self.background or None),
            ("conversation", self.conversation),
            ("prompt", self.prompt),
        ):
            if given is not None:
                raise BadRequest(f"{name}: this is not supported here.", name, "unsupported_parameter")
        tools, choice = chosen(self.tool_choice, flattened(self.tools or ()))
        return ChatBody.model_construct(
            messages=self._messages(),
            tools=[OfferedTool(function=tool.function) for tool in tools],
            tool_choice=choice,
            response_format=self._format(),
            max_completion_tokens=self.max_output_tokens,
            reasoning_effort=self.reasoning.effort if self.reasoning else None,
            logprobs=self.wants_logprobs,
            top_logprobs=self.top_logprobs if self.wants_logprobs else None,
            **{
                name: getattr(self, name)
                for name in (
                    "model",
                    "temperature",
                    "top_p",
                    "presence_penalty",
                    "frequency_penalty",
                    "parallel_tool_calls",
                    "preset",
                    "decoding",
                )
            },
        )

    @property
    def turns(self) -> list[int]:
        """Where the messages of the user's stand in the input."""
        items = enumerate(self.input)
        return [at for at, item in items if item.type == "message" and item.role == "user"]

    def since(self, at: int) -> ResponsesBody:
        """The same without the items before."""
        return self.model_copy(update={"input": self.input[at:]})

    def _messages(self) -> list[Message]:
        messages = [Message(role="system", content=self.instructions)] if self.instructions else []
        read = [item for item in self.input if item.type in _READ]
        # What the model wrote in one answer, words and calls, is one message of it.
        for calling, items in groupby(read, lambda item: item.type in _CALLS):
            if calling:
                said = messages.pop() if messages and messages[-1].role == "assistant" else None
                content = said.content if said else ""
                calls = [_called(item) for item in items]
                messages.append(Message(role="assistant", content=content, tool_calls=calls))
            else:
                messages += [_said(item) for item in items]
        if not any(message.role != "system" for message in messages):
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


def _said(item: Item) -> Message:
    """A message, or what a call returned."""
    if item.type in _OUTPUTS:
        return Message(role="tool", content=item.output, tool_call_id=item.call_id)
    return Message(role=item.role, content=item.content)


def _called(item: Item) -> CalledTool:
    """A call that was made, as the model wrote it."""
    arguments = custom_arguments(item.input) if item.type == "custom_tool_call" else item.arguments
    name = called_name(item.name or "", item.namespace)
    return CalledTool(id=item.call_id, function=CalledFunction(name=name, arguments=arguments))
