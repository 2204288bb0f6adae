"""OpenAI's request bodies, with what is particular to diffusion added. Unknown fields are ignored.

A field that is null or left out takes its default in `generation/`. The descriptions are the API reference.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from vermilion.decoding.decoders import described
from vermilion.errors import BadParameter
from vermilion.serving.wire.lenient_values import (
    as_json,
    flatten_content,
    list_stops,
    listed_prompts,
    single_prompt,
    without_limit,
)
from vermilion.serving.wire.sampling_ranges import (
    FrequencyPenalty,
    LogitBias,
    MinP,
    NumLogprobs,
    PresencePenalty,
    RepetitionPenalty,
    Temperature,
    TopP,
)

MOST_STOPS = 64
MOST_CHOICES = 8
MAX_MESSAGES = 4096
"""Of a conversation, in every protocol's names for them."""
_PENALTY = "Lowers (above 0) or raises the score of tokens "

WIRE = ConfigDict(strict=True, extra="ignore", frozen=True)
"""No conversion between types, nothing unknown refused."""


class TextPart(BaseModel):
    model_config = WIRE

    type: Literal["text"]
    text: str


class CalledFunction(BaseModel):
    model_config = WIRE

    name: str
    arguments: Annotated[str, BeforeValidator(as_json, json_schema_input_type=str | dict[str, Any])] = Field(
        "{}", description="One JSON object, as text or as it is."
    )


class CalledTool(BaseModel):
    model_config = WIRE

    id: str | None = None
    function: CalledFunction


class Message(BaseModel):
    model_config = WIRE

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    tool_calls: list[CalledTool] | None = None
    function_call: CalledFunction | None = None
    tool_call_id: str | None = None
    content: Annotated[
        str, BeforeValidator(flatten_content, json_schema_input_type=str | list[TextPart] | None)
    ] = Field("", description="A string, a list of text parts, or null.")

    @property
    def calls(self) -> list[CalledTool]:
        """The calls in both forms."""
        earlier = [CalledTool(function=self.function_call)] if self.function_call else []
        return [*(self.tool_calls or ()), *earlier]


Stops = Annotated[
    list[str] | None, BeforeValidator(list_stops, json_schema_input_type=str | list[str] | None)
]
TokenLimit = Annotated[int | None, BeforeValidator(without_limit, json_schema_input_type=int | None)]


class StreamOptions(BaseModel):
    model_config = WIRE

    include_usage: bool | None = Field(None, description="Send `usage` in a chunk of its own at the end.")


class JsonSchema(BaseModel):
    model_config = WIRE

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    model_config = WIRE

    type: Literal["text", "json_object", "json_schema", "regex", "lark", "grammar"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="For `json_object` and `json_schema`, as llama.cpp takes it."
    )
    value: str | None = Field(None, description="The regular expression, or the grammar.")
    grammar: str | None = Field(None, description="Another name of `value`.")


class StructuredOutputs(BaseModel):
    """vLLM's; one of them."""

    model_config = WIRE

    json_: str | dict[str, Any] | bool | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = Field(None, description="Refused.")
    whitespace_pattern: str | None = Field(None, description="Refused.")


class Generation(BaseModel):
    """What chat and plain completion have in common."""

    model_config = WIRE

    model: str | None = Field(None, description="Id or alias of a served model; the only one if left out.")
    max_tokens: TokenLimit = Field(
        None, ge=1, description="Longest answer; cut to what fits, which is all that -1 says."
    )
    min_tokens: int | None = Field(None, ge=0, description="Do not end the answer before so many tokens.")
    ignore_eos: bool | None = Field(None, description="Go on to `max_tokens` whatever the model says.")
    stop_repetition: bool | None = Field(
        None, description="False lets an answer repeat itself to its limit; it is stopped otherwise."
    )
    temperature: Temperature = Field(
        None, description="0, the default, takes the likeliest token; higher is more varied."
    )
    top_p: TopP = Field(None, description="Sample from this share of probability.")
    top_k: int | None = Field(None, ge=-1, description="Sample from so many tokens; 0 or -1: no limit.")
    min_p: MinP = Field(None, description="Leave out tokens less likely than this share of the likeliest.")
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="Same seed, same answer; the i-th choice uses seed + i."
    )
    stop: Stops = Field(
        None, max_length=MOST_STOPS, description="The answer ends before any of these strings."
    )
    n: int | None = Field(None, ge=1, le=MOST_CHOICES, description="How many answers.")
    presence_penalty: PresencePenalty = Field(None, description=_PENALTY + "already used.")
    frequency_penalty: FrequencyPenalty = Field(None, description=_PENALTY + "per use.")
    repetition_penalty: RepetitionPenalty = Field(
        None, description="Divides the score of tokens already used; 1 is none."
    )
    logit_bias: dict[str, LogitBias] | None = Field(
        None, description="Token id -> what is added to its score."
    )
    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
    stream_options: StreamOptions | None = None
    diffusing: bool | Literal["diff", "tokens"] | None = Field(
        None,
        description="With `stream`, of chats and completions: the whole canvas after every pass. Each "
        "`delta.content` or `text` REPLACES the one before; `diffusion_meta` says which characters are "
        'settled, masked or edited. `"diff"` leaves the text out: `diffusion_meta.diff` = [start, end, '
        'text] says what to replace in the one before. `"tokens"` adds `diffusion_meta.tokens`.',
    )
    preset: str | None = Field(
        None,
        description="A way of decoding: `ar` one token a pass, `lossless` the same text in fewer passes, "
        "`balanced` and `fast` fewer still.",
    )
    decoding: dict[Annotated[str, Field(max_length=40)], Any] | None = Field(
        None,
        description=described(),
    )

    response_format: ResponseFormat | None = Field(
        None,
        description="`json_object`, `json_schema`, or (ours) `regex`, `lark` and `grammar` with a `value`: "
        "the answer keeps to it from its first character, whatever the model would say.",
    )
    grammar: str | None = Field(None, description="llama.cpp's: a grammar in its notation, or Lark's.")
    json_schema: str | dict[str, Any] | None = Field(None, description="llama.cpp's.")
    regex: str | None = Field(None, description="SGLang's.")
    ebnf: str | None = Field(None, description="SGLang's name of `grammar`.")
    guided_json: str | dict[str, Any] | bool | None = Field(None, description="vLLM's.")
    guided_regex: str | None = Field(None, description="vLLM's.")
    guided_choice: list[str] | None = Field(None, description="vLLM's.")
    guided_grammar: str | None = Field(None, description="vLLM's.")
    guided_whitespace_pattern: str | None = Field(None, description="Refused.")
    structured_outputs: StructuredOutputs | None = Field(
        None, description="As in vLLM: one of `json`, `regex`, `choice`, `grammar`, `json_object`."
    )

    @property
    def shows_canvas(self) -> bool:
        return bool(self.stream and self.diffusing)

    @property
    def wants_usage_chunk(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ToolFunction(BaseModel):
    model_config = WIRE

    name: str = Field(min_length=1, max_length=128, pattern=r"^[^\s\"\\<>]+$")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of an object.")
    strict: bool | None = None


class OfferedTool(BaseModel):
    model_config = WIRE

    type: Literal["function"] = "function"
    function: ToolFunction


class NamedFunction(BaseModel):
    model_config = WIRE

    name: str


class NamedTool(BaseModel):
    model_config = WIRE

    type: Literal["function"] = "function"
    function: NamedFunction


class AllowedTools(BaseModel):
    """Those of the tools that may, or must, be called."""

    model_config = WIRE

    mode: Literal["auto", "required"] = "auto"
    tools: list[NamedTool] = Field(max_length=256)


class ToolsChoice(BaseModel):
    model_config = WIRE

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


Effort = Literal["none", "minimal", "instant", "low", "medium", "high", "xhigh"]


class ChatBody(Generation):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(
        min_length=1, max_length=MAX_MESSAGES, description="The conversation so far, oldest first."
    )
    max_completion_tokens: TokenLimit = Field(None, ge=1, description="Wins over `max_tokens`.")
    logprobs: bool | None = Field(
        None, description="Send each token's log probability, confidence and the pass it settled in."
    )
    top_logprobs: NumLogprobs = Field(None, description="So many likeliest tokens beside each.")
    tools: list[OfferedTool] | None = Field(None, max_length=256, description="Functions it may call.")
    tool_choice: Literal["auto", "none", "required"] | NamedTool | ToolsChoice | None = Field(
        None, description="`required`, a named function and `allowed_tools` are held to by a grammar."
    )
    parallel_tool_calls: bool | None = Field(None, description="Whether one answer may hold several calls.")
    functions: list[ToolFunction] | None = Field(
        None, max_length=256, description="The earlier form of `tools`; a call is then `function_call`."
    )
    function_call: Literal["auto", "none"] | NamedFunction | None = Field(
        None, description="The earlier form of `tool_choice`."
    )
    reasoning_effort: Effort | None = Field(
        None, description="Chooses a preset: `instant` fast, `low` balanced, above that lossless."
    )
    reasoning_summary: bool | None = Field(None, description="Answered with the status `unavailable`.")
    continue_final_message: bool | None = Field(None, description="Go on from the last one, as in vLLM.")
    realtime: bool | None = Field(
        None,
        description="Scheduled first, with short first canvases (`decoding.first_block`); no chunk ends on a "
        "sentence's end unless the answer does.",
    )

    @property
    def names_functions(self) -> bool:
        """Whether calls are told in the earlier form."""
        return bool(self.functions) and not self.tools

    @property
    def with_tools(self) -> ChatBody:
        """The same with the earlier form of tools in the present one, at most one call, and with the allowed
        tools alone. Raises `BadParameter`."""
        if isinstance(self.tool_choice, ToolsChoice):
            allowed = self.tool_choice.allowed_tools
            offers = {tool.function.name: tool for tool in self.tools or ()}
            names = [tool.function.name for tool in allowed.tools]
            for name in names:
                if name not in offers:
                    known = ", ".join(offers) or "no name: there are no tools"
                    raise BadParameter("tool_choice.allowed_tools.tools", name, known)
            tools = [tool for name, tool in offers.items() if name in names]
            return self.model_copy(update={"tools": tools, "tool_choice": allowed.mode})
        if not self.names_functions:
            return self
        choice = self.function_call
        return self.model_copy(
            update={
                "tools": [OfferedTool(function=function) for function in self.functions or ()],
                "tool_choice": NamedTool(function=choice) if isinstance(choice, NamedFunction) else choice,
                "parallel_tool_calls": False,
            }
        )


Prompt = Annotated[
    str | list[int],
    BeforeValidator(single_prompt, json_schema_input_type=str | list[str] | list[int]),
    Field(description="Text to go on from, unchanged by any chat template; or its token ids."),
]


class CompletionBody(Generation):
    """Body of POST /v1/completions."""

    prompt: Annotated[
        str | list[int] | list[str | list[int]],
        BeforeValidator(listed_prompts, json_schema_input_type=str | list[int] | list[str | list[int]]),
        Field(
            description="Text to go on from, unchanged by any chat template, or its token ids; or a list of "
            "such, each answered with choices of its own."
        ),
    ]
    suffix: str | None = Field(None, description="Text right of the gap: the answer fills in between.")
    echo: bool | None = Field(None, description="Let the text begin with the prompt; not with `logprobs`.")
    best_of: int | None = Field(
        None,
        ge=1,
        le=MOST_CHOICES,
        description="Make so many answers; the `n` likeliest (best fits) are sent.",
    )
    logprobs: NumLogprobs = Field(None, description="So many likeliest tokens beside each token.")

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several."""
        several = isinstance(self.prompt, list) and self.prompt and not isinstance(self.prompt[0], int)
        return self.prompt if several else [self.prompt]  # type: ignore[list-item,return-value]
