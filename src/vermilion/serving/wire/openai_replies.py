"""OpenAI's whole replies, and the usage and log-probabilities in them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vermilion.serving.generation.choices import Choice
from vermilion.serving.generation.metering import together
from vermilion.serving.generation.tools import Toolbox, read_calls
from vermilion.types import TokenInfo, Usage

_LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON lacks."""


@dataclass(frozen=True, slots=True)
class Head:
    """What every reply and chunk of one call repeats."""

    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))


def chat_reply(
    head: Head, choices: Sequence[Choice], logprobs: bool, box: Toolbox | None = None
) -> dict[str, Any]:
    """`box` holds the tools that the answers may call."""
    rendered = []
    for index, choice in enumerate(choices):
        content, calls = read_calls(choice.text, box)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message["content"] = content or None
            message["tool_calls"] = [
                {"index": number, **call_body(call.id, call.name, call.arguments)}
                for number, call in enumerate(calls)
            ]
        rendered.append(
            {
                "index": index,
                "message": message,
                "logprobs": chat_logprobs(choice.tokens) if logprobs else None,
                "finish_reason": "tool_calls" if calls and choice.reason == "stop" else choice.reason,
                **stopped_by(choice.stop_string),
            }
        )
    return _reply(head, "chat.completion", rendered, choices)


def stopped_by(stop_string: str) -> dict[str, str]:
    """vLLM's field, sent only where a stop string ended the answer."""
    return {"stop_reason": stop_string} if stop_string else {}


def call_body(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def completion_reply(head: Head, choices: Sequence[Choice], logprobs: bool) -> dict[str, Any]:
    return _reply(
        head,
        "text_completion",
        [
            {
                "index": index,
                "text": choice.text,
                "logprobs": completion_logprobs(choice.tokens, 0) if logprobs else None,
                "finish_reason": choice.reason,
                **stopped_by(choice.stop_string),
            }
            for index, choice in enumerate(choices)
        ],
        choices,
    )


def _reply(
    head: Head, kind: str, rendered: list[dict[str, Any]], choices: Sequence[Choice]
) -> dict[str, Any]:
    return {
        "id": head.id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "choices": rendered,
        "usage": usage_body([choice.usage for choice in choices]),
    }


def usage_body(usages: Sequence[Usage]) -> dict[str, Any]:
    """Usage in OpenAI's nested and Mercury's flat style; choices share one prompt, which counts once."""
    total = together(usages)
    return {
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "total_tokens": total.prompt_tokens + total.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": total.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
        "cached_input_tokens": total.cached_tokens,
        "reasoning_tokens": 0,
        "diffusion": {
            "passes": total.passes,
            "tokens_per_pass": round(total.tokens_per_pass, 3),
            "edits": total.edits,
        },
    }


def scored(tokens: Sequence[TokenInfo], ids: bool = False) -> list[dict[str, Any]]:
    """Ollama's list of tokens with their log-probabilities; with `ids` llama.cpp's."""
    return [
        {
            **({"id": token.id} if ids else {}),
            **_scored(token.text, token.logprob),
            "top_logprobs": [
                {**({"id": id} if ids else {}), **_scored(text, logprob)} for id, text, logprob in token.top
            ],
        }
        for token in tokens
    ]


def chat_logprobs(tokens: Sequence[TokenInfo]) -> dict[str, Any]:
    """OpenAI's shape; beside each token the confidence and the pass it settled with."""
    return {
        "content": [
            {**row, "confidence": token.confidence, "pass": token.pass_number}
            for row, token in zip(scored(tokens), tokens, strict=True)
        ],
        "refusal": None,
    }


def completion_logprobs(tokens: Sequence[TokenInfo], offset: int) -> dict[str, Any]:
    """OpenAI's older shape, parallel lists; `offset` is where the first token begins in the answer."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [max(token.logprob, _LEAST_LOGPROB) for token in tokens],
        "top_logprobs": [
            {text: max(logprob, _LEAST_LOGPROB) for _, text, logprob in token.top} for token in tokens
        ],
        "text_offset": offsets,
        "confidence": [token.confidence for token in tokens],
        "pass": [token.pass_number for token in tokens],
    }


def _scored(text: str, logprob: float) -> dict[str, Any]:
    return {
        "token": text,
        "logprob": max(logprob, _LEAST_LOGPROB),
        "bytes": list(text.encode("utf-8", "replace")),
    }
