"""An engine's request in the words of OpenAI's API, as each kind of server understands them."""

from __future__ import annotations

import json
from typing import Any

from vermilion.serving.remote.estimated_tokens import sent_prompt
from vermilion.serving.remote.remote_errors import UpstreamCannot
from vermilion.serving.remote.upstreams import Upstream
from vermilion.types import Grammar, Request, Sampling

_VERMILION = "vermilion"
_ONLY_OURS = ("preset", "decoding", "realtime")
"""Fields that no other kind of server knows."""


def upstream_body(request: Request, one: Upstream, model: str) -> tuple[str, dict[str, Any]]:
    """(route below /v1, body). Raises `UpstreamCannot`."""
    _check(request, one.kind)
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        **_sampling(request.sampling),
        **_form(request.grammar, one.kind),
    }
    asked = dict(request.forwarded or {})
    ours = {name: asked.pop(name) for name in _ONLY_OURS if name in asked}
    if one.kind == _VERMILION:
        asked |= ours
        if request.canvas:
            asked["diffusing"] = True
    if "messages" in asked:
        return "chat/completions", {**body, **_chat_logprobs(request.sampling), **asked}
    if request.sampling.logprobs is not None:
        body["logprobs"] = request.sampling.logprobs
    if request.suffix:
        body["suffix"] = sent_prompt(request.suffix)
    return "completions", {**body, "prompt": sent_prompt(request.prompt), **asked}


def _check(request: Request, kind: str) -> None:
    if request.seeds is not None:
        raise UpstreamCannot(
            "model",
            "this model runs on another server, which answers with text and fills no canvas; decisions and "
            "holes of a fixed length need one.",
        )
    if request.suffix and kind != _VERMILION:
        raise UpstreamCannot("suffix", "the server that runs this model fills no gaps in a text.")
    if request.canvas and kind != _VERMILION:
        raise UpstreamCannot(
            "diffusing",
            "the server that runs this model shows no canvas; leave it out to get text as it settles.",
        )
    asked = request.forwarded or {}
    if asked.get("continue_final_message") and kind == "other":
        raise UpstreamCannot("messages", "the server that runs this model begins every answer by itself.")
    if asked.get("decoding") and kind != _VERMILION:
        raise UpstreamCannot("decoding", "the server that runs this model has no decoders to choose from.")


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """What differs from what every server takes for granted."""
    given: dict[str, Any] = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
    if sampling.temperature:
        given["seed"] = sampling.seed
    for name, usual in (
        ("top_p", 1.0),
        ("top_k", 0),
        ("min_p", 0.0),
        ("repetition_penalty", 1.0),
        ("presence_penalty", 0.0),
        ("frequency_penalty", 0.0),
        ("min_tokens", 0),
        ("ignore_eos", False),
    ):
        value = getattr(sampling, name)
        if value != usual:
            given[name] = value
    if sampling.stop:
        given["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        given["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return given


def _chat_logprobs(sampling: Sampling) -> dict[str, Any]:
    if sampling.logprobs is None:
        return {}
    return {"logprobs": True, "top_logprobs": sampling.logprobs}


def _form(grammar: Grammar | None, kind: str) -> dict[str, Any]:
    """The fields that hold an answer to a form. Raises `UpstreamCannot`."""
    if grammar is None:
        return {}
    if grammar.kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if grammar.kind == "json_schema":
        schema = {"name": "output", "schema": json.loads(grammar.text)}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if kind == _VERMILION:
        return {"response_format": {"type": grammar.kind, "value": grammar.text}}
    if grammar.kind == "regex" and kind == "vllm":
        return {"structured_outputs": {"regex": grammar.text}}
    if grammar.kind == "regex" and kind == "sglang":
        return {"regex": grammar.text}
    raise UpstreamCannot(
        "response_format", f"the server that runs this model holds no answer to a {grammar.kind} grammar."
    )
