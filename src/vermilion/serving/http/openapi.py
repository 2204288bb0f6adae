"""The words and examples of the API reference under /docs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

OVERVIEW = """An open diffusion language model behind OpenAI's API: point any OpenAI client at `/v1`.

Text settles many tokens at a time. `stream` sends it as it settles, with `diffusing` as the whole canvas
after every pass of the model; `preset` chooses between exactness and speed. Every route also answers without
`/v1` and with a slash at the end. Unknown fields are ignored; errors have the shape
`{"error": {"message", "type", "param", "code"}}`.
"""

TAGS: list[dict[str, Any]] = [
    {"name": "generation", "description": "Text from the model."},
    {"name": "audio", "description": "Speech to text and text to speech."},
    {"name": "models", "description": "What is served, and its tokens."},
    {"name": "adapters", "description": "Loaded and unloaded while others are answered, as vLLM does it."},
    {"name": "files", "description": "Uploads, and what jobs and batches make."},
    {"name": "fine-tuning", "description": "Runs of `vermilion train`, served when they are done."},
    {"name": "batches", "description": "Many requests in one file, answered behind everybody else's."},
    {"name": "anthropic", "description": "For clients of Anthropic's Messages API; text only."},
    {"name": "ollama", "description": 'For clients of Ollama. Errors have the shape `{"error": "..."}`.'},
    {"name": "lm studio", "description": "For clients of LM Studio: OpenAI's shapes and figures of speed."},
    {"name": "llama.cpp", "description": "For editors that complete with llama.cpp's server."},
    {"name": "amazon", "description": "For clients of Amazon's Bedrock and SageMaker."},
    {"name": "azure", "description": "For clients of Azure AI, beside OpenAI's routes."},
    {
        "name": "accounts",
        "description": "Sign-up, keys, usage and invoices, where the service keeps accounts.",
    },
    {"name": "operations", "description": "For load balancers and monitoring."},
]

_USAGE = {
    "prompt_tokens": 24,
    "completion_tokens": 9,
    "total_tokens": 33,
    "prompt_tokens_details": {"cached_tokens": 16},
    "completion_tokens_details": {"reasoning_tokens": 0},
    "cached_input_tokens": 16,
    "reasoning_tokens": 0,
    "diffusion": {
        "passes": 4,
        "tokens_per_pass": 2.25,
        "edits": 0,
        "drafted_tokens": 0,
        "accepted_tokens": 0,
    },
}


def _error_reply(text: str, code: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    example = {"error": {"message": text, "type": kind, "param": None, "code": code}}
    return {"description": text, "content": {"application/json": {"example": example}}}


_REFUSALS = {
    400: _error_reply("A field is missing, of the wrong type or out of range.", "invalid_value"),
    404: _error_reply("No such model is served.", "model_not_found"),
    413: _error_reply("The body is too large.", "request_too_large"),
    415: _error_reply("The body is not sent as application/json.", "unsupported_media_type"),
    429: _error_reply(
        "The queue is full; Retry-After says when to try.", "engine_overloaded", "rate_limit_error"
    ),
    503: _error_reply("The model is loading, or the service is stopping.", "model_loading", "server_error"),
}


def _reply(text: str, example: object, stream: str = "") -> dict[int | str, dict[str, Any]]:
    content: dict[str, Any] = {"application/json": {"example": example}}
    if stream:
        content["text/event-stream"] = {"example": stream}
    return {200: {"description": text, "content": content}}


def request_body(name: str, examples: dict[str, object]) -> dict[str, Any]:
    """FastAPI's `openapi_extra` of a route whose body is the schema `name`."""
    named = {key: {"summary": key, "value": value} for key, value in examples.items()}
    schema = {"$ref": f"#/components/schemas/{name}"}
    content = {"application/json": {"schema": schema, "examples": named}}
    return {"requestBody": {"required": True, "content": content}}


_QUESTION = [{"role": "user", "content": "What is the capital of France?"}]

CHAT: dict[str, Any] = {
    "tags": ["generation"],
    "summary": "Answer a conversation",
    "description": "With `stream`, chunks append to the text. With `diffusing`, each chunk's `delta.content` "
    "is the whole text and replaces the one before; `diffusion_meta` gives the progress and, as ranges of "
    "characters, what is settled, masked and edited.",
    "examples": {
        "A question": {"messages": _QUESTION},
        "As it settles": {
            "messages": _QUESTION,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        "As it denoises": {"messages": _QUESTION, "stream": True, "diffusing": True},
        "Tuned by hand": {
            "messages": _QUESTION,
            "temperature": 0.7,
            "seed": 1,
            "decoding": {"decoder": "threshold", "threshold": 0.8},
        },
    },
    "responses": {
        **_reply(
            "The answer.",
            {
                "id": "chatcmpl-4f2a",
                "object": "chat.completion",
                "created": 1767225600,
                "model": "smollm2-135m-diffusion",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "The capital of France is Paris."},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
                "usage": _USAGE,
            },
            'data: {"id":"chatcmpl-4f2a","object":"chat.completion.chunk","created":1767225600,'
            '"model":"smollm2-135m-diffusion","choices":[{"index":0,"delta":{"content":"The capital of"},'
            '"logprobs":null,"finish_reason":null}]}\n\ndata: [DONE]\n\n',
        ),
        **_REFUSALS,
    },
}


def operation(
    tag: str,
    summary: str,
    text: str,
    examples: dict[str, Any] | None,
    example: object,
    stream: str | dict[str, Any] = "",
) -> dict[str, Any]:
    """What the API reference says of a route. `examples` are those of its body, by name; `stream` is an
    example in server-sent events, or a content entry of another media type."""
    content: dict[str, Any] = {"application/json": {"example": example}}
    if isinstance(stream, dict):
        content |= stream
    elif stream:
        content["text/event-stream"] = {"example": stream}
    responses: dict[int, Any] = {200: {"description": "The reply.", "content": content}, 503: _REFUSALS[503]}
    more: dict[str, Any] = {}
    if examples is not None:
        responses |= _REFUSALS
        more["examples"] = examples
    return {"tags": [tag], "summary": summary, "description": text, "responses": responses, **more}


COMPLETIONS: dict[str, Any] = {
    "tags": ["generation"],
    "summary": "Continue a text, or fill a gap in it",
    "description": "The prompt goes to the model as it is. With `suffix` the answer stands between the two.",
    "examples": {
        "Continue": {"prompt": "Once upon a time", "max_tokens": 32},
        "Fill a gap": {"prompt": "def add(a, b):\n    return ", "suffix": "\n\nprint(add(1, 2))"},
    },
    "responses": {
        **_reply(
            "The text.",
            {
                "id": "cmpl-91c0",
                "object": "text_completion",
                "created": 1767225600,
                "model": "smollm2-135m-diffusion",
                "choices": [{"index": 0, "text": "a + b", "logprobs": None, "finish_reason": "stop"}],
                "usage": _USAGE,
            },
            'data: {"id":"cmpl-91c0","object":"text_completion","created":1767225600,'
            '"model":"smollm2-135m-diffusion","choices":[{"index":0,"text":"a + b","logprobs":null,'
            '"finish_reason":null}]}\n\ndata: [DONE]\n\n',
        ),
        **_REFUSALS,
    },
}

HEALTH: dict[str, Any] = {
    "tags": ["operations"],
    "summary": "Whether the process lives",
    "description": "Always 200 while it does, loading and draining included.",
    "responses": _reply("It lives.", {"status": "ok"}),
}

READY: dict[str, Any] = {
    "tags": ["operations"],
    "summary": "Whether requests are taken",
    "responses": {**_reply("They are.", {"status": "ready"}), 503: _REFUSALS[503]},
}

METRICS: dict[str, Any] = {
    "tags": ["operations"],
    "summary": "Metrics in Prometheus' text format",
    "responses": {
        200: {"description": "The metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
}


def install(app: FastAPI, bodies: Collection[type[BaseModel]]) -> None:
    """Adds the request bodies to the application's schema; the routes read them by themselves."""
    _, schema = models_json_schema(
        [(body, "validation") for body in bodies],
        ref_template="#/components/schemas/{model}",
    )
    plain = app.openapi

    def described() -> dict[str, Any]:
        document = plain()
        document.setdefault("components", {}).setdefault("schemas", {}).update(schema["$defs"])
        for path in document["paths"].values():
            for operation in path.values():
                # FastAPI's own refusal of parameters, which no route here can give.
                operation["responses"].pop("422", None)
        return document

    app.openapi = described  # type: ignore[method-assign]
