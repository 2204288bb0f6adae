"""The lists of models, and their tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fastapi.responses import Response

from vermilion.accounts.money import written
from vermilion.errors import BadRequest
from vermilion.serving.generation import chat, model_names
from vermilion.serving.heavy_work import offload
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import Route
from vermilion.serving.pooled_model import PooledModel
from vermilion.serving.wire.openai_bodies import ChatBody
from vermilion.serving.wire.tokenize_bodies import DetokenizeBody, TokenizeBody
from vermilion.types import ModelInfo

_NO_SAMPLING = {"model", "messages", "stream", "stream_options", "diffusing"}
_FEATURES = ("tools",)
_FEATURES_WITH_BASE = ("tools", "json_mode", "structured_outputs")
"""A grammar decides from left to right, which needs the next token's probabilities."""
_TOKENS_AT_ONCE = 4096
_PARAMETERS = sorted(set(ChatBody.model_fields) - _NO_SAMPLING)


def model_row(pooled: PooledModel, name: str, model: ModelInfo | None = None) -> dict[str, Any]:
    """One row of the model list: OpenAI's fields, Mercury's and ours; `model` as an organisation sees it."""
    model = model or pooled.model
    # Of a model that was never loaded nobody knows whether it has a template; most have.
    chatting = pooled.served is None or pooled.served.template is not None
    endpoints = ["completions", "fim.completions"]
    chats = ["chat.completions", *endpoints, "edit.completions", "apply.completions"]
    features = _FEATURES_WITH_BASE if "lossless" in model.decoders else _FEATURES
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "vermilion",
        "name": name if name in model.adapters else model.id,
        "description": model.description,
        "input_modalities": ["text"],
        "output_modalities": ["text"],
        "context_length": model.context_length,
        "max_output_length": max(0, model.context_length - 1),
        "pricing": dict.fromkeys(("prompt", "completion", "input_cache_reads", "input_cache_writes"), "0"),
        "supported_sampling_parameters": _PARAMETERS,
        "supported_features": list(features) if chatting else [],
        "supported_endpoints": chats if chatting else endpoints,
        "openrouter": None,
        "datacenters": [],
        "decoders": list(model.decoders),
        "presets": {preset: decoding.decoder for preset, decoding in model.presets.items()},
        "default_preset": model.default_preset,
        "state": pooled.state,
        "memory_bytes": pooled.memory_bytes or None,
        **({"error": pooled.error} if pooled.error else {}),
        **({"parent": model.id} if name in model.adapters else {}),
    }


async def _priced(context: RequestContext, row: dict[str, Any]) -> dict[str, Any]:
    """A row with the price in force, in dollars per token; free on a service without accounts."""
    if context.service.accounts is None:
        return row
    price = await context.service.accounts.price(row["id"] if "parent" in row else row["name"])
    fresh, cached, output = map(written, (price.input, price.cached_input, price.output))
    named = {"prompt": fresh, "completion": output, "input_cache_reads": cached, "input_cache_writes": fresh}
    return {**row, "pricing": named}


async def _listed(context: RequestContext, endpoint: str = "") -> Response:
    config = context.service.config
    rows = [
        model_row(pooled, name, model)
        for pooled, model in context.service.listed()
        for name in model_names.names(model, config)
    ]
    if not endpoint and config.mercury_names:
        # Clients look for the name that is written into them before they ask for it.
        (pooled, model), known = context.service.listed()[0], {row["id"] for row in rows}
        rows += [model_row(pooled, name, model) for name in model_names.MERCURY_NAMES if name not in known]
    shown = [row for row in rows if not endpoint or endpoint in row["supported_endpoints"]]
    return json_response({"object": "list", "data": [await _priced(context, row) for row in shown]})


async def models(context: RequestContext) -> Response:
    return await _listed(context)


async def chat_models(context: RequestContext) -> Response:
    return await _listed(context, "chat.completions")


async def fim_models(context: RequestContext) -> Response:
    return await _listed(context, "fim.completions")


async def edit_models(context: RequestContext) -> Response:
    return await _listed(context, "edit.completions")


async def model(context: RequestContext, id: str) -> Response:
    pooled, model = context.service.find(id)
    return json_response(await _priced(context, model_row(pooled, id, model)))


async def tokenize(context: RequestContext, body: TokenizeBody) -> Response:
    if sum(given is not None for given in (body.prompt, body.content, body.messages)) != 1:
        raise BadRequest(
            "prompt: give one of prompt, content and messages.", "prompt", "missing_required_parameter"
        )
    tokens = await chat.token_ids(body, context.served, context.service.config)
    head = {"count": len(tokens), "max_model_len": context.model.context_length}
    lists: dict[str, Callable[[int], object]] = {"tokens": int}
    if body.with_pieces:
        lists["tokens"] = lambda token: {"id": token, "piece": context.served.tokenizer.token_text(token)}
    if body.return_token_strs:
        lists["token_strs"] = context.served.tokenizer.token_text
    content = await offload(lambda: _listing(head, tokens, lists))
    return Response(content, media_type="application/json")


def _listing(head: dict[str, Any], tokens: list[int], lists: Mapping[str, Callable[[int], object]]) -> bytes:
    """`head` as JSON, with lists made of `tokens` a slice at a time: one call for all holds every thread."""
    parts = [json.dumps(head)[:-1]]
    for name, of in lists.items():
        slices = (tokens[at : at + _TOKENS_AT_ONCE] for at in range(0, len(tokens), _TOKENS_AT_ONCE))
        written = (json.dumps(list(map(of, some)), ensure_ascii=False)[1:-1] for some in slices)
        parts.append(f', "{name}": [{", ".join(written)}]')
    return "".join([*parts, "}"]).encode("utf-8", "replace")


async def detokenize(context: RequestContext, body: DetokenizeBody) -> Response:
    model_names.check_model(body.model, context.model, context.service.config)
    text = await chat.text_of(body.tokens, context.served)
    return json_response({"prompt": text, "content": text})


_MODEL = {
    "id": "smollm2-135m-diffusion",
    "object": "model",
    "created": 1767225600,
    "owned_by": "vermilion",
    "state": "loaded",
}
MODELS = operation(
    "models",
    "List the models and their aliases",
    "Under an endpoint's path, those that can be asked there. `state` is loaded, loading, on_disk, "
    "not_pulled or failed: a model on the disk is loaded when it is asked for.",
    None,
    {"object": "list", "data": [_MODEL]},
)
MODEL = operation("models", "One model", "404 for names that are not served.", None, _MODEL)
TOKENIZE = operation(
    "models",
    "Count and list the tokens of a text or a conversation",
    "Strings that look like control tokens are ordinary text.",
    {"A text": {"prompt": "Hello world", "return_token_strs": True}},
    {"count": 2, "max_model_len": 8192, "tokens": [19556, 905], "token_strs": ["Hello", " world"]},
)
DETOKENIZE = operation(
    "models",
    "The text of tokens",
    "Control tokens are left out.",
    {"Two tokens": {"tokens": [72, 105]}},
    {"prompt": "Hi", "content": "Hi"},
)


ROUTES = (
    Route("GET", "/v1/models", models, MODELS),
    Route("GET", "/v1/chat/completions/models", chat_models, MODELS),
    Route("GET", "/v1/fim/completions/models", fim_models, MODELS),
    Route("GET", "/v1/edit/completions/models", edit_models, MODELS),
    Route("GET", "/v1/models/{id:path}", model, MODEL),
    Route("POST", "/v1/tokenize", tokenize, TOKENIZE, TokenizeBody),
    Route("POST", "/v1/detokenize", detokenize, DETOKENIZE, DetokenizeBody),
)
