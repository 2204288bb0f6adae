"""OpenAI's whole replies, and the usage and log-probabilities in them."""

from __future__ import annotations

import codecs
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vermilion.serving.generation.choices import Choice, repeated
from vermilion.serving.generation.metering import together
from vermilion.serving.generation.tools import Toolbox, read_calls
from vermilion.types import Finish, TokenInfo, Usage

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
                **stopped_by(choice),
            }
        )
    return _reply(head, "chat.completion", rendered, choices)


def name_functions(reply: dict[str, Any]) -> None:
    """Tells the calls of a reply in their earlier form."""
    for choice in reply["choices"]:
        for call in choice["message"].pop("tool_calls", ())[:1]:
            choice["message"]["function_call"] = call["function"]
        if choice["finish_reason"] == "tool_calls":
            choice["finish_reason"] = "function_call"


def stopped_by(ended: Choice | Finish) -> dict[str, str | bool]:
    """vLLM's field, sent only where a stop string ended the answer, and ours for repetition."""
    named = {"stop_reason": ended.stop_string} if ended.stop_string else {}
    return {**named, **repeated(ended)}


def call_body(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def completion_reply(
    head: Head, choices: Sequence[Choice], logprobs: bool, echoes: Sequence[str] = ("",)
) -> dict[str, Any]:
    """`echoes` has a text for each prompt that its choices begin with."""
    size = max(1, len(choices) // len(echoes))
    reply = _reply(
        head,
        "text_completion",
        [
            {
                "index": index,
                "text": echoes[index // size] + choice.text,
                "logprobs": completion_logprobs(choice.tokens, TokenOffsets()) if logprobs else None,
                "finish_reason": choice.reason,
                **stopped_by(choice),
            }
            for index, choice in enumerate(choices)
        ],
        choices,
    )
    return {**reply, "usage": usage_body([choice.usage for choice in choices], len(echoes))}


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


def usage_body(usages: Sequence[Usage], num_prompts: int = 1) -> dict[str, Any]:
    """Usage in OpenAI's nested and Mercury's flat style; choices of one prompt count it once."""
    total = together(usages, num_prompts)
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
            "drafted_tokens": total.drafted_tokens,
            "accepted_tokens": total.accepted_tokens,
            **({"cache": total.cache, "cached_passes": total.cached_passes} if total.cache else {}),
        },
    }


def scored(tokens: Sequence[TokenInfo], ids: bool = False) -> list[dict[str, Any]]:
    """Ollama's list of tokens with their log-probabilities; with `ids` llama.cpp's."""
    return [
        {
            **({"id": token.id} if ids else {}),
            **_scored(token.raw, token.logprob),
            "top_logprobs": [
                {**({"id": id} if ids else {}), **_scored(raw, logprob)} for id, raw, logprob in token.top
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


class TokenOffsets:
    """Where each token of an answer begins, in characters; a part of a character begins where that does."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def next(self, tokens: Sequence[TokenInfo]) -> list[int]:
        offsets = []
        for token in tokens:
            unfinished, _ = self._decoder.getstate()
            broken_off = unfinished and token.raw[:1] and not 0x80 <= token.raw[0] < 0xC0
            offsets.append(self._length + bool(broken_off))
            self._length += len(self._decoder.decode(token.raw))
        return offsets


def completion_logprobs(tokens: Sequence[TokenInfo], offsets: TokenOffsets) -> dict[str, Any]:
    """OpenAI's older shape, parallel lists; `offsets` knows the answer's earlier tokens."""
    return {
        "tokens": [_token_name(token.raw) for token in tokens],
        "token_logprobs": [max(token.logprob, _LEAST_LOGPROB) for token in tokens],
        "top_logprobs": [
            {_token_name(raw): max(logprob, _LEAST_LOGPROB) for _, raw, logprob in token.top}
            for token in tokens
        ],
        "text_offset": offsets.next(tokens),
        "confidence": [token.confidence for token in tokens],
        "pass": [token.pass_number for token in tokens],
    }


def _token_name(raw: bytes) -> str:
    """As text, or where it is no whole characters as OpenAI writes it: bytes:\\xe2\\x80."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _scored(raw: bytes, logprob: float) -> dict[str, Any]:
    return {
        "token": raw.decode("utf-8", "replace"),
        "logprob": max(logprob, _LEAST_LOGPROB),
        "bytes": list(raw),
    }
