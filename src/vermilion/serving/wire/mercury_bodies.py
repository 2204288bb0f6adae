"""Mercury's body for filling a gap in code."""

from __future__ import annotations

from pydantic import Field

from vermilion.serving.http.openapi import operation
from vermilion.serving.wire.openai_bodies import MOST_STOPS, CompletionBody, Generation, Prompt, Stops

DEFAULT_STOPS = ("\n\n", "\n \n")
_DEFAULT_PRESENCE_PENALTY = 1.5
_MOST_TOKENS = 8192

_TEMPLATES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
)
"""Qwen's and Mercury's marks, and StarCoder's."""


def untemplated(prompt: str) -> tuple[str, str] | None:
    """Prefix and suffix of a gap that a client wrote out in another model's template; None for other text.

    Editors that have no field for a suffix do so: Continue's `openai` provider and Zed's edit predictions.
    """
    written = prompt.rstrip()
    for begin, between, end in _TEMPLATES:
        if written.endswith(end):
            prefix, found, suffix = written.removesuffix(end).rpartition(between)
            if found:
                return prefix.removeprefix(begin), suffix
    return None


class FimBody(Generation):
    """Body of POST /v1/fim/completions."""

    prompt: Prompt
    suffix: str | None = Field(None, description="Text right of the gap.")
    stop: Stops = Field(
        None,
        max_length=MOST_STOPS,
        description='The answer ends before any of these strings; `["\\n\\n", "\\n \\n"]` if left out.',
    )
    presence_penalty: float | None = Field(
        None,
        ge=-2,
        le=2,
        allow_inf_nan=False,
        description="Lowers (above 0) or raises the score of tokens already used; 1.5 if left out.",
    )

    logprobs: int | None = Field(None, ge=0, le=20, description="So many likeliest tokens beside each token.")

    @property
    def completion(self) -> CompletionBody:
        """The same with the defaults of this route."""
        given = {name: getattr(self, name) for name in Generation.model_fields}
        if self.stop is None:
            given["stop"] = list(DEFAULT_STOPS)
        if self.presence_penalty is None:
            given["presence_penalty"] = _DEFAULT_PRESENCE_PENALTY
        if self.max_tokens:
            given["max_tokens"] = min(self.max_tokens, _MOST_TOKENS)
        return CompletionBody.model_construct(
            prompt=self.prompt, suffix=self.suffix, logprobs=self.logprobs, **given
        )


FIM = operation(
    "generation",
    "Fill a gap in code",
    "As /v1/completions, with Mercury's defaults: it stops at an empty line, with a `presence_penalty` of "
    "1.5 and at most 512 tokens. Each chunk of a stream carries its text as `text` and as `delta.content`.",
    {"A gap": {"prompt": "def add(a, b):\n    return ", "suffix": "\n\nprint(add(1, 2))"}},
    {
        "id": "cmpl-91c0",
        "object": "text_completion",
        "created": 1767225600,
        "model": "smollm2-135m-diffusion",
        "choices": [{"index": 0, "text": "a + b", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 18, "completion_tokens": 3, "total_tokens": 21},
    },
    'data: {"id":"cmpl-91c0","object":"text_completion","created":1767225600,'
    '"model":"smollm2-135m-diffusion","choices":[{"index":0,"text":"a + b","delta":{"content":"a + b"},'
    '"logprobs":null,"finish_reason":null}]}\n\ndata: [DONE]\n\n',
)
