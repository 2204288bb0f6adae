"""Ollama's API: its model lists, and its chats and completions as lines of JSON."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi.responses import Response

import vermilion
from vermilion.errors import ModelNotFound, VermilionError
from vermilion.serving.generation import chat, model_names
from vermilion.serving.generation.choices import Choice, repeated
from vermilion.serving.generation.tool_calls import ToolCall, pieces_of
from vermilion.serving.generation.tools import Toolbox, read_calls
from vermilion.serving.http.error_rendering import ollama_error
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import OPEN, Route
from vermilion.serving.pooled_model import PooledModel
from vermilion.serving.wire import ollama_bodies
from vermilion.serving.wire.ollama_bodies import (
    OllamaAsk,
    OllamaChatBody,
    OllamaGenerateBody,
    OllamaPullBody,
    OllamaShowBody,
)
from vermilion.serving.wire.openai_bodies import ChatBody
from vermilion.serving.wire.openai_replies import scored
from vermilion.types import Event, Finish, ModelInfo, Request, Text, TokenInfo

_NEVER = "9999-12-31T00:00:00Z"
"""When a model that stays in memory leaves it."""
API_LEVEL = "0.9.0"
"""The release of Ollama whose routes these are; clients refuse servers that seem older than they need."""

Say = Callable[[str, Sequence[ToolCall]], dict[str, Any]]
"""Wraps a text, and calls beside it, as a line of the route carries them."""


def _say_message(text: str, calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
            for call in calls
        ]
    return {"message": message}


def _say_response(text: str, calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
    return {"response": text}


def _line(model: str, said: Mapping[str, Any], **more: object) -> dict[str, Any]:
    created = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {"model": model, "created_at": created, **said, **more}


def _final(model: str, said: Mapping[str, Any], choice: Choice) -> dict[str, Any]:
    """The line with the figures; durations are nanoseconds."""
    return _line(
        model,
        said,
        done=True,
        done_reason=choice.reason,
        **repeated(choice),
        total_duration=int((choice.prompt_s + choice.text_s) * 1e9),
        load_duration=0,
        prompt_eval_count=choice.usage.prompt_tokens,
        prompt_eval_duration=int(choice.prompt_s * 1e9),
        eval_count=choice.usage.completion_tokens,
        eval_duration=int(choice.text_s * 1e9),
    )


def _logprobs(tokens: Sequence[TokenInfo]) -> dict[str, Any]:
    return {"logprobs": scored(tokens)} if tokens else {}


class OllamaStream:
    """A line of JSON per event, and one per call."""

    media_type = "application/x-ndjson"
    keep_alive = b""

    def __init__(self, model: str, say: Say, box: Toolbox | None) -> None:
        self._model = model
        self._say = say
        self._choice = Choice()
        self._reader = box.reader() if box else None
        self._untold: list[TokenInfo] = []
        """Tokens that settled since the last line."""

    def render(self, index: int, event: Event) -> bytes:
        self._choice.add(event)
        if isinstance(event, Text):
            self._untold += event.tokens
        content = b"".join(self._told(piece) for piece in self._pieces(event))
        if isinstance(event, Finish):
            last = self._say("", ()) | _logprobs(self._untold)
            content += _encode(_final(self._model, last, self._choice))
        return content

    def _pieces(self, event: Event) -> list[str | ToolCall]:
        pieces = pieces_of(event, self._reader)
        # The API has arguments as objects, so a call is told when it is whole.
        return [
            piece
            for piece in pieces
            if isinstance(piece, str) or (isinstance(piece, ToolCall) and piece.whole)
        ]

    def _told(self, piece: str | ToolCall) -> bytes:
        said = self._say(piece, ()) if isinstance(piece, str) else self._say("", (piece,))
        scores, self._untold = _logprobs(self._untold), []
        return _encode(_line(self._model, said | scores, done=False))

    def close(self) -> bytes:
        return b""

    def fail(self, error: VermilionError) -> bytes:
        return _encode(ollama_error(error))


def _encode(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


async def _reply(
    context: RequestContext, requests: list[Request], body: OllamaAsk, say: Say, box: Toolbox | None
) -> Response:
    if body.stream is not False:
        return context.stream(requests, OllamaStream(body.model, say, box))
    (choice,) = await context.whole(requests)
    text, calls = read_calls(choice.text, box)
    said = say(text, calls) | _logprobs(choice.tokens)
    return json_response(_final(body.model, said, choice))


def _loaded(name: str, said: Mapping[str, Any]) -> Response:
    """The answer to nothing asked, by which Ollama's clients have a model loaded; here it always is."""
    return json_response(_line(name, said, done=True, done_reason="load"))


async def ollama_chat(context: RequestContext, body: OllamaChatBody) -> Response:
    asked = await context.offload(lambda: body.chat(context.model.context_length))
    model_names.check_model(asked.model, context.model, context.service.config)
    if not body.messages:
        return _loaded(body.model, _say_message(""))
    id = f"ollama-{secrets.token_hex(12)}"
    requests = await chat.chat_requests(asked, context.served, context.service.config, id)
    box = chat.toolbox(asked, context.service.config)
    return await _reply(context, requests, body, _say_message, box)


async def ollama_generate(context: RequestContext, body: OllamaGenerateBody) -> Response:
    asked = body.request(context.model.context_length, context.served.template is not None)
    model_names.check_model(asked.model, context.model, context.service.config)
    if not (body.prompt or body.suffix):
        return _loaded(body.model, _say_response(""))
    id = f"ollama-{secrets.token_hex(12)}"
    if isinstance(asked, ChatBody):
        requests = await chat.chat_requests(asked, context.served, context.service.config, id)
    else:
        requests = await chat.completion_requests(asked, context.served, context.service.config, id)
    return await _reply(context, requests, body, _say_response, None)


async def ollama_version(context: RequestContext) -> Response:
    return json_response({"version": API_LEVEL, "vermilion": vermilion.__version__})


async def ollama_tags(context: RequestContext) -> Response:
    return json_response({"models": [_tag(model, name) for _, model, name in _named(context)]})


async def ollama_show(context: RequestContext, body: OllamaShowBody) -> Response:
    name = body.model or body.name
    if not name:
        raise ModelNotFound("", model_names.names(context.model, context.service.config))
    pooled, model = context.service.find(ollama_bodies.plain_name(name))
    return json_response(_show(model, pooled.served is None or pooled.served.template is not None))


async def ollama_running(context: RequestContext) -> Response:
    more = {"expires_at": _NEVER, "size_vram": 0}
    loaded = [(model, name) for pooled, model, name in _named(context) if pooled.state == "loaded"]
    return json_response({"models": [{**_tag(model, name), **more} for model, name in loaded]})


def _named(context: RequestContext) -> list[tuple[PooledModel, ModelInfo, str]]:
    """The models on this machine, by each of their names."""
    return [
        (pooled, model, name)
        for pooled, model in context.service.listed()
        for name in model_names.names(model, context.service.config)
        if pooled.state != "not_pulled"
    ]


async def ollama_pull(context: RequestContext, body: OllamaPullBody) -> Response:
    """What is served is there already; nothing else is fetched for a client."""
    name = ollama_bodies.plain_name(body.model or body.name or "")
    if not name:
        raise ModelNotFound("", model_names.names(context.model, context.service.config))
    context.service.find(name)
    if body.stream is False:
        return json_response({"status": "success"})
    lines = b"".join(_encode({"status": status}) for status in ("pulling manifest", "success"))
    return Response(lines, media_type=OllamaStream.media_type)


def _details() -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": "diffusion",
        "families": ["diffusion"],
        "parameter_size": "",
        "quantization_level": "",
    }


def _tag(model: ModelInfo, name: str) -> dict[str, Any]:
    tagged = name if ":" in name else f"{name}:latest"
    return {
        "name": tagged,
        "model": tagged,
        "modified_at": _modified_at(model),
        "size": 0,
        # Clients tell models apart by it; of the name, since no one file holds the model.
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "details": _details(),
    }


def _show(model: ModelInfo, chats: bool) -> dict[str, Any]:
    return {
        "license": "",
        "modelfile": "",
        "parameters": "",
        "template": "",
        "modified_at": _modified_at(model),
        "details": _details(),
        "model_info": {
            "general.architecture": "diffusion",
            "general.basename": model.id,
            "diffusion.context_length": model.context_length,
            "diffusion.vocab_size": model.vocab_size,
        },
        # A client offers to chat with a model only where it completes.
        "capabilities": ["completion", "insert", "tools"] if chats else ["insert"],
    }


def _modified_at(model: ModelInfo) -> str:
    return datetime.fromtimestamp(model.created, UTC).isoformat().replace("+00:00", "Z")


_NAME = "smollm2-135m-diffusion"
_EXAMPLE = ModelInfo(_NAME, 8192, 49152, (2,), 16, 1767225600)
_LINES = {"application/x-ndjson": {"example": '{"model":"m","message":{"content":"Hi"},"done":false}\n'}}
_DONE = {"model": _NAME, "done": True, "done_reason": "stop", "eval_count": 3, "eval_duration": 41000000}
CHAT = operation(
    "ollama",
    "Answer a conversation",
    "A stream of JSON lines unless `stream` is false.",
    {"A question": {"model": _NAME, "messages": [{"role": "user", "content": "Hi"}]}},
    {**_DONE, **_say_message("Hello!")},
    _LINES,
)
GENERATE = operation(
    "ollama",
    "Answer a prompt, continue it or fill a gap",
    "The chat template is applied, except with `raw`; with `suffix` the answer stands between the two.",
    {"A gap": {"model": _NAME, "prompt": "def f(x):", "suffix": "\n", "stream": False}},
    {**_DONE, **_say_response(" return x")},
    _LINES,
)
VERSION = operation("ollama", "The release of Ollama whose API this is", "", None, {"version": API_LEVEL})
TAGS = operation("ollama", "List the models", "", None, {"models": [_tag(_EXAMPLE, _NAME)]})
SHOW = operation(
    "ollama",
    "One model",
    "",
    {"By name": {"model": _NAME}},
    _show(_EXAMPLE, True),
)


RUNNING = operation("ollama", "List the models in memory", "", None, {"models": [_tag(_EXAMPLE, _NAME)]})
PULL = operation(
    "ollama",
    "Make sure that a model is there",
    "Models that are served are; others are not fetched.",
    {"By name": {"model": _NAME, "stream": False}},
    {"status": "success"},
    {"application/x-ndjson": {"example": '{"status":"success"}\n'}},
)
ROUTES = (
    Route("POST", "/api/chat", ollama_chat, CHAT, OllamaChatBody),
    Route("POST", "/api/generate", ollama_generate, GENERATE, OllamaGenerateBody),
    Route("GET", "/api/version", ollama_version, VERSION, scopes=OPEN, needs_model=False),
    Route("GET", "/api/tags", ollama_tags, TAGS),
    Route("POST", "/api/show", ollama_show, SHOW, OllamaShowBody, loads=False),
    Route("GET", "/api/ps", ollama_running, RUNNING),
    Route("POST", "/api/pull", ollama_pull, PULL, OllamaPullBody, loads=False),
)
