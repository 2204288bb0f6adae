"""LM Studio's model list, and the figures it adds to OpenAI's replies."""

from __future__ import annotations

import json
from typing import Any

from fastapi.responses import Response

import vermilion
from vermilion.errors import ModelNotFound, VermilionError
from vermilion.serving.generation import model_names
from vermilion.serving.generation.choices import Choice
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import Route
from vermilion.serving.wire.openai_replies import Head
from vermilion.serving.wire.openai_streams import ChatStream, CompletionStream
from vermilion.types import Event, Finish, ModelInfo

_STOP_REASONS = {"stop": "eosFound", "length": "maxPredictedTokensReached"}
_LEAST_S = 1e-9


def figures(model: ModelInfo, choice: Choice) -> dict[str, Any]:
    """The fields LM Studio's replies have beyond OpenAI's; `choice` has ended."""
    return {
        "stats": {
            "tokens_per_second": choice.usage.completion_tokens / max(choice.text_s, _LEAST_S),
            "time_to_first_token": choice.prompt_s,
            "generation_time": choice.text_s,
            "stop_reason": "stopStringFound"
            if choice.stop_string
            else _STOP_REASONS.get(choice.reason, choice.reason),
        },
        "model_info": {
            "arch": "diffusion",
            "quant": "none",
            "format": "safetensors",
            "context_length": model.context_length,
        },
        "runtime": {
            "name": "vermilion",
            "version": vermilion.__version__,
            "supported_formats": ["safetensors"],
        },
    }


class FiguresStream:
    """Another stream, with the figures in a chunk of their own when the first answer has ended."""

    def __init__(self, stream: ChatStream | CompletionStream, model: ModelInfo) -> None:
        self._stream = stream
        self._model = model
        self._choice = Choice()
        self.media_type = stream.media_type
        self.keep_alive = stream.keep_alive

    def render(self, index: int, event: Event) -> bytes:
        content = self._stream.render(index, event)
        if index == 0:
            self._choice.add(event)
            if isinstance(event, Finish):
                more = json.dumps(figures(self._model, self._choice), separators=(",", ":"))
                content += self._stream.chunk("", f",{more[1:-1]}").encode()
        return content

    def close(self) -> bytes:
        return self._stream.close()

    def fail(self, error: VermilionError) -> bytes:
        return self._stream.fail(error)


def _model_body(model: ModelInfo, name: str, loaded: bool = True) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "type": "llm",
        "publisher": "vermilion",
        "arch": "diffusion",
        "compatibility_type": "safetensors",
        "quantization": "none",
        "state": "loaded" if loaded else "not-loaded",
        "max_context_length": model.context_length,
        **({"loaded_context_length": model.context_length} if loaded else {}),
    }


def _rows(context: RequestContext) -> dict[str, dict[str, Any]]:
    return {
        name: _model_body(model, name, pooled.state == "loaded")
        for pooled, model in context.service.listed()
        for name in model_names.names(model, context.service.config)
    }


async def lm_studio_models(context: RequestContext) -> Response:
    return json_response({"object": "list", "data": list(_rows(context).values())})


async def lm_studio_model(context: RequestContext, id: str) -> Response:
    known = _rows(context)
    if id not in known:
        raise ModelNotFound(id[:100], tuple(known))
    return json_response(known[id])


_EXAMPLE = _model_body(ModelInfo("smollm2-135m-diffusion", 8192, 49152, (2,), 16), "smollm2-135m-diffusion")
_FIGURES = figures(
    ModelInfo("smollm2-135m-diffusion", 8192, 49152, (2,), 16),
    Choice(started_s=1.0, first_text_s=1.1, ended_s=1.6),
)
_HEAD = Head("chatcmpl-4f2a", "smollm2-135m-diffusion", 1767225600)
_REPLY = {"id": _HEAD.id, "model": _HEAD.model, "created": _HEAD.created, **_FIGURES}

MODELS = operation("lm studio", "List the models", "", None, {"object": "list", "data": [_EXAMPLE]})
MODEL = operation("lm studio", "One model", "", None, _EXAMPLE)
CHAT = operation(
    "lm studio",
    "Answer a conversation",
    "As /v1/chat/completions, with `stats`, `model_info` and `runtime`; in a stream as a chunk of their own.",
    {"A question": {"messages": [{"role": "user", "content": "Hello!"}]}},
    {**_REPLY, "object": "chat.completion"},
)
COMPLETIONS = operation(
    "lm studio",
    "Continue a text",
    "As /v1/completions, with the same additions.",
    {"Continue": {"prompt": "Once upon a time", "max_tokens": 32}},
    {**_REPLY, "object": "text_completion"},
)


ROUTES = (
    Route("GET", "/api/v0/models", lm_studio_models, MODELS),
    Route("GET", "/api/v0/models/{id:path}", lm_studio_model, MODEL),
)
