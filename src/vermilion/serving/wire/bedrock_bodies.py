"""What Bedrock's Converse takes, said again in the terms of Anthropic's messages, which it resembles."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from pydantic.alias_generators import to_camel

from vermilion.errors import BadParameter, BadRequest
from vermilion.serving.http.notices import note_ignored
from vermilion.serving.http.parsing import convert
from vermilion.serving.wire.anthropic_bodies import MessagesBody
from vermilion.serving.wire.openai_bodies import MAX_MESSAGES, MOST_STOPS, ChatBody, Effort

_CAMEL = ConfigDict(
    strict=True, extra="ignore", frozen=True, alias_generator=to_camel, validate_by_alias=True
)
_READABLE = ("txt", "md", "csv", "html")
"""Formats of documents that are text."""
_UNSEEN = ("cachePoint", "reasoningContent", "toolAddition", "toolRemoval")
"""Blocks that say nothing to the model."""
_BLOCKS = "text, toolUse, toolResult, document, searchResult, guardContent, cachePoint, reasoningContent"
_ADDITIONAL = "additionalModelRequestFields"
_SAID_ELSEWHERE = {
    "messages",
    "model",
    "max_tokens",
    "max_completion_tokens",
    "stream",
    "stream_options",
    "n",
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "logprobs",
    "top_logprobs",
}
"""Fields of a chat that Converse has in another place, or has no way to answer."""


class ConverseMessage(BaseModel):
    model_config = _CAMEL

    role: Literal["user", "assistant", "system"]
    content: list[dict[str, Any]] = Field(description=f"Blocks, each with one of {_BLOCKS}.")


class InferenceConfig(BaseModel):
    model_config = _CAMEL

    max_tokens: int | None = Field(default=None, ge=1, description="Longest answer; cut to what fits.")
    temperature: FiniteFloat | None = Field(default=None, ge=0, le=2, description="0, the default, is exact.")
    top_p: FiniteFloat | None = Field(
        default=None, ge=0, le=1, description="Sample from this share of probability."
    )
    stop_sequences: list[str] | None = Field(
        default=None, max_length=MOST_STOPS, description="The answer ends before any of these strings."
    )


class ConverseInputSchema(BaseModel):
    model_config = _CAMEL

    json_: dict[str, Any] = Field(default_factory=dict, alias="json")


class ConverseToolSpec(BaseModel):
    model_config = _CAMEL

    name: str = Field(max_length=128)
    description: str | None = None
    input_schema: ConverseInputSchema = Field(default_factory=ConverseInputSchema)
    strict: bool | None = None


class ConverseTool(BaseModel):
    model_config = _CAMEL

    tool_spec: ConverseToolSpec | None = None
    system_tool: dict[str, Any] | None = Field(None, description="Runs at Amazon; left out.")


class ConverseNamedTool(BaseModel):
    model_config = _CAMEL

    name: str


class ConverseToolChoice(BaseModel):
    model_config = _CAMEL

    auto: dict[str, Any] | None = None
    any: dict[str, Any] | None = None
    tool: ConverseNamedTool | None = None


class ToolConfig(BaseModel):
    model_config = _CAMEL

    tools: list[ConverseTool] = Field(max_length=256, description="Functions it may call.")
    tool_choice: ConverseToolChoice | None = Field(
        None, description="`any` and `tool` are held to by a grammar; `auto` unless set."
    )


class ConverseJsonSchema(BaseModel):
    model_config = _CAMEL

    schema_: str = Field(alias="schema", description="A JSON schema, as text.")
    name: str | None = None
    description: str | None = None


class ConverseStructure(BaseModel):
    model_config = _CAMEL

    json_schema: ConverseJsonSchema


class ConverseTextFormat(BaseModel):
    model_config = _CAMEL

    type: Literal["json_schema"]
    structure: ConverseStructure


class ConverseOutputConfig(BaseModel):
    model_config = _CAMEL

    text_format: ConverseTextFormat | None = Field(
        default=None, description="The answer is held to it by a grammar."
    )
    effort: Effort | Literal["max"] | None = Field(default=None, description="As `reasoning_effort` of chat.")


class PerformanceConfig(BaseModel):
    model_config = _CAMEL

    latency: Literal["standard", "optimized"] = "standard"


class ConverseBody(BaseModel):
    """Body of POST /model/{id}/converse and of .../converse-stream."""

    model_config = _CAMEL

    messages: list[ConverseMessage] = Field(
        min_length=1,
        max_length=MAX_MESSAGES,
        description="The conversation; the model goes on from a last message of the assistant.",
    )
    system: list[dict[str, Any]] | None = Field(None, description="Blocks with `text`.")
    inference_config: InferenceConfig = InferenceConfig()
    tool_config: ToolConfig | None = None
    output_config: ConverseOutputConfig = ConverseOutputConfig()
    performance_config: PerformanceConfig = Field(
        PerformanceConfig(), description="`optimized` is the chat's `realtime`."
    )
    additional_model_request_fields: dict[str, Any] | None = Field(
        None,
        description="Fields of /v1/chat/completions: preset, decoding, reasoning_effort, seed, top_k ...",
    )
    additional_model_response_field_paths: list[str] | None = Field(
        None, max_length=10, description="JSON pointers: /stop_sequence, /usage/diffusion ..."
    )
    guardrail_config: dict[str, Any] | None = Field(None, description="Refused: there are no guardrails.")
    prompt_variables: dict[str, Any] | None = Field(None, description="Refused: there are no prompts.")

    @property
    def messages_body(self) -> MessagesBody:
        """The same in Anthropic's terms. Raises `BadRequest`."""
        self._check_served()
        inference, tools = self.inference_config, self.tool_config
        output: dict[str, Any] = {"effort": self.output_config.effort}
        if self.output_config.text_format is not None:
            schema = _schema(self.output_config.text_format.structure.json_schema.schema_)
            output["format"] = {"type": "json_schema", "schema": schema}
        given: dict[str, Any] = {
            "messages": [
                {"role": one.role, "content": _blocks(one.content, f"messages[{number}].content")}
                for number, one in enumerate(self.messages)
            ],
            "system": _blocks(self.system or (), "system"),
            "max_tokens": inference.max_tokens or 1,
            "temperature": inference.temperature,
            "top_p": inference.top_p,
            "stop_sequences": inference.stop_sequences,
            "tools": _tools(tools) if tools else None,
            "tool_choice": _choice(tools.tool_choice) if tools and tools.tool_choice else None,
            "output_config": output,
        }
        return convert({name: value for name, value in given.items() if value is not None}, MessagesBody, {})

    def chat(self, anthropic: MessagesBody) -> ChatBody:
        """In OpenAI's terms, with what stands in `additionalModelRequestFields`. Raises `BadRequest`."""
        realtime = self.performance_config.latency == "optimized"
        changed: dict[str, Any] = {"max_tokens": self.inference_config.max_tokens}
        changed |= {"realtime": True} if realtime else {}
        return anthropic.chat.model_copy(update={**changed, **self._additional})

    @property
    def _additional(self) -> dict[str, Any]:
        wanted = set(ChatBody.model_fields) - _SAID_ELSEWHERE
        fields = {name: value for name, value in (self.additional_model_request_fields or {}).items()}
        given = {name: value for name, value in fields.items() if name in wanted and value is not None}
        if not given:
            return {}
        names = {name: f"{_ADDITIONAL}.{name}" for name in given}
        anything = [{"role": "user", "content": ""}]
        checked = convert({**given, "messages": anything}, ChatBody, names)
        return {name: getattr(checked, name) for name in given}

    def _check_served(self) -> None:
        if self.guardrail_config:
            raise BadRequest(
                "guardrailConfig: this service has no guardrails, and an answer without one would not be "
                "what was asked for. Leave it out.",
                "guardrailConfig",
                "unsupported_parameter",
            )
        if self.prompt_variables:
            raise BadRequest(
                "promptVariables: prompts that Amazon keeps are not served here. Send messages.",
                "promptVariables",
                "unsupported_parameter",
            )


class InvokedTokens(BaseModel):
    model_config = _CAMEL

    body: str = Field(description="What would be sent to /model/{id}/invoke, in base64.")


class CountedConversation(ConverseBody):
    """What would be sent to /model/{id}/converse."""


class CountedInput(BaseModel):
    model_config = _CAMEL

    invoke_model: InvokedTokens | None = None
    converse: CountedConversation | None = None


class CountTokensBody(BaseModel):
    """Body of POST /model/{id}/count-tokens."""

    model_config = _CAMEL

    input: CountedInput = Field(description="One of `converse` and `invokeModel`.")


def decoded(text: str, param: str) -> bytes:
    """Raises `BadRequest` for what is no base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"{param}: this must be base64.", param, "invalid_value") from None


def _schema(text: str) -> dict[str, Any]:
    param = "outputConfig.textFormat.structure.jsonSchema.schema"
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        raise BadRequest(f"{param}: this must be a JSON schema as text.", param, "invalid_value") from None
    if not isinstance(schema, dict):
        raise BadParameter(param, text, "the text of a JSON object")
    return schema


def _tools(config: ToolConfig) -> list[dict[str, Any]]:
    note_ignored("toolConfig: systemTool" for tool in config.tools if tool.system_tool is not None)
    return [
        {
            "name": spec.name,
            "description": spec.description,
            "input_schema": spec.input_schema.json_,
            "strict": spec.strict,
        }
        for spec in (tool.tool_spec for tool in config.tools)
        if spec is not None
    ]


def _choice(choice: ConverseToolChoice) -> dict[str, Any]:
    if choice.tool is not None:
        return {"type": "tool", "name": choice.tool.name}
    return {"type": "auto" if choice.any is None else "any"}


def _blocks(blocks: Sequence[Mapping[str, Any]], param: str) -> list[dict[str, Any]]:
    read = (_block(block, f"{param}[{number}]") for number, block in enumerate(blocks))
    return [block for block in read if block is not None]


def _block(block: Mapping[str, Any], param: str) -> dict[str, Any] | None:
    """A block in Anthropic's form; None for one that says nothing. Raises `BadRequest`."""
    members = [(name, value) for name, value in block.items() if value is not None]
    if len(members) != 1:
        raise BadParameter(param, ", ".join(name for name, _ in members), f"one of {_BLOCKS}")
    kind, value = members[0]
    if kind in _UNSEEN:
        return None
    if kind == "text":
        if not isinstance(value, str):
            raise BadParameter(f"{param}.text", value, "a string")
        return {"type": "text", "text": value}
    if not isinstance(value, Mapping):
        raise BadParameter(f"{param}.{kind}", value, "an object")
    if kind == "toolUse":
        called = {"name": value.get("name"), "input": value.get("input") or {}}
        return {"type": "tool_use", "id": value.get("toolUseId"), **called}
    if kind == "toolResult":
        content = _result(value.get("content") or (), f"{param}.toolResult.content")
        return {"type": "tool_result", "tool_use_id": value.get("toolUseId"), "content": content}
    if kind == "document":
        return _document(value, f"{param}.document")
    if kind == "searchResult":
        return {**value, "type": "search_result"}
    if kind == "guardContent":
        guarded = value.get("text")
        return {"type": "text", "text": guarded.get("text") if isinstance(guarded, Mapping) else None}
    if kind == "citationsContent":
        cited = _result(value.get("content") or (), f"{param}.citationsContent.content")
        return {"type": "text", "text": "".join(str(part["text"]) for part in cited if "text" in part)}
    return {"type": kind}


def _result(content: Any, param: str) -> list[dict[str, Any]]:
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise BadParameter(param, content, "a list of blocks")
    parts = [
        {"text": json.dumps(part["json"], ensure_ascii=False)} if part.get("json") is not None else part
        for part in content
    ]
    return _blocks(parts, param)


def _document(value: Mapping[str, Any], param: str) -> dict[str, Any]:
    """A document that is text, with its text; of others only that there is one."""
    source = value.get("source")
    source = source if isinstance(source, Mapping) else {}
    told = {"type": "document", "title": value.get("name"), "context": value.get("context")}
    if isinstance(source.get("text"), str):
        return {**told, "source": {"type": "text", "data": source["text"]}}
    if isinstance(source.get("content"), list):
        return {**told, "source": {"type": "content", "content": source["content"]}}
    if isinstance(source.get("bytes"), str) and value.get("format") in _READABLE:
        text = decoded(source["bytes"], f"{param}.source.bytes").decode("utf-8", "replace")
        return {**told, "source": {"type": "text", "data": text}}
    return {"type": f"document ({value.get('format')})", "source": {}}
