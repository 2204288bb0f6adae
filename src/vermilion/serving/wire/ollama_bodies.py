"""Ollama's request bodies, and what they come to in OpenAI's terms."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from vermilion.errors import BadParameter, BadRequest
from vermilion.serving.http.parsing import convert
from vermilion.serving.wire.openai_bodies import (
    MAX_MESSAGES,
    WIRE,
    ChatBody,
    CompletionBody,
    Message,
    OfferedTool,
)
from vermilion.serving.wire.sampling_ranges import NumLogprobs

_OURS = {
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    **{
        name: name
        for name in (
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "seed",
            "stop",
            "presence_penalty",
            "frequency_penalty",
            "preset",
            "decoding",
        )
    },
}
"""Ollama's option -> our field; the last two are not Ollama's own."""
_THEIRS = {
    **{ours: f"options.{theirs}" for theirs, ours in _OURS.items()},
    "response_format": "format",
}


def plain_name(name: str) -> str:
    """Ollama's clients add the tag they saw in the list."""
    return name.removesuffix(":latest")


class OllamaMessage(Message):
    """A message, which Ollama gives images beside its content."""

    images: list[Any] | None = Field(None, description="Refused: the model reads only text.")


class OllamaAsk(BaseModel):
    """What chat and generate have in common."""

    model_config = WIRE

    model: str = Field(min_length=1, description="Id or alias of a served model, with or without `:latest`.")
    stream: bool | None = Field(None, description="False for one JSON reply; lines of JSON otherwise.")
    format: Literal["", "json"] | dict[str, Any] | None = Field(
        None, description="`json`, or a JSON schema that the answer keeps to."
    )
    options: dict[str, Any] | None = Field(
        None, description="How to answer: " + ", ".join(f"`{name}`" for name in _OURS) + "."
    )

    logprobs: bool | None = Field(None, description="Send each token's log probability.")
    top_logprobs: NumLogprobs = Field(None, description="So many likeliest tokens beside each.")

    def settings(self, context_length: int) -> dict[str, Any]:
        """Fields of our own bodies."""
        given = self.options or {}
        ours: dict[str, Any] = {"logprobs": self.logprobs, "top_logprobs": self.top_logprobs}
        ours |= {_OURS[name]: value for name, value in given.items() if name in _OURS}
        limit = ours.get("max_tokens")
        if type(limit) is int and limit <= 0:
            ours["max_tokens"] = context_length
        if self.format:
            schema = {"type": "json_schema", "json_schema": {"schema": self.format}}
            ours["response_format"] = {"type": "json_object"} if self.format == "json" else schema
        return {**ours, "model": plain_name(self.model)}


class OllamaChatBody(OllamaAsk):
    """Body of POST /api/chat."""

    messages: list[OllamaMessage] = Field(
        [], max_length=MAX_MESSAGES, description="The conversation so far; none only loads."
    )
    tools: list[OfferedTool] | None = Field(None, max_length=256, description="Functions it may call.")

    def chat(self, context_length: int) -> ChatBody:
        """Raises `BadRequest`."""
        if any(message.images for message in self.messages):
            raise _refused("messages", "images are not understood; this model reads only text")
        settings = self.settings(context_length)
        # None at all is Ollama's way to load a model; the rest of the body is checked all the same.
        first = [{"role": "user", "content": ""}]
        body = convert({**settings, "messages": first}, ChatBody, _THEIRS)
        return body.model_copy(update={"messages": self.messages or body.messages, "tools": self.tools})


class OllamaGenerateBody(OllamaAsk):
    """Body of POST /api/generate."""

    prompt: str = Field("", description="What to answer; with `raw` or a suffix the text to go on from.")
    suffix: str | None = Field(None, description="Text right of the gap.")
    system: str | None = Field(None, description="A system message before the prompt.")
    raw: bool | None = Field(None, description="Leave out the chat template.")
    images: list[Any] | None = Field(None, description="Refused: the model reads only text.")

    def request(self, context_length: int, chats: bool) -> ChatBody | CompletionBody:
        """A conversation, or without a chat template a text to continue. Raises `BadRequest`."""
        if self.images:
            raise _refused("images", "images are not understood; this model reads only text")
        settings = self.settings(context_length)
        if self.raw or self.suffix or not chats:
            if self.top_logprobs is not None and not self.logprobs:
                raise BadParameter("top_logprobs", self.top_logprobs, "nothing, unless logprobs is true")
            top = (self.top_logprobs or 0) if self.logprobs else None
            plain = {**settings, "prompt": self.prompt, "suffix": self.suffix, "logprobs": top}
            return convert(plain, CompletionBody, _THEIRS)
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": self.prompt})
        return convert({**settings, "messages": messages}, ChatBody, _THEIRS)


class OllamaShowBody(BaseModel):
    """Body of POST /api/show."""

    model_config = WIRE

    model: str | None = Field(None, description="Id or alias of a served model.")
    name: str | None = Field(None, description="The same, as older clients name it.")


class OllamaPullBody(BaseModel):
    """Body of POST /api/pull."""

    model_config = WIRE

    model: str | None = Field(None, description="Id or alias of a served model.")
    name: str | None = Field(None, description="The same, as older clients name it.")
    stream: bool | None = Field(None, description="False for one JSON reply; lines of JSON otherwise.")


def _refused(param: str, why: str) -> BadRequest:
    return BadRequest(f"{param}: {why}.", param, "unsupported_parameter")
