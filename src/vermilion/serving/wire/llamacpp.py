"""llama.cpp's routes that generate: /infill, for editors that complete code, and /completion."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi.responses import Response
from pydantic import BaseModel, Field

from vermilion.errors import VermilionError
from vermilion.serving.generation import chat
from vermilion.serving.generation.choices import Choice, repeated
from vermilion.serving.http.error_rendering import openai_error
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import Route
from vermilion.serving.http.sse import EVENT_STREAM
from vermilion.serving.wire.openai_bodies import WIRE, CompletionBody, Generation, Prompt
from vermilion.serving.wire.openai_replies import scored
from vermilion.serving.wire.openai_streams import KEEP_ALIVE
from vermilion.serving.wire.sampling_ranges import NumLogprobs, RepetitionPenalty
from vermilion.types import Event, Finish, Request, Text, TokenInfo

_LEAST_S = 1e-9
_STOP_TYPES = {"stop": "eos", "length": "limit"}


class ExtraFile(BaseModel):
    model_config = WIRE

    filename: str = Field("", description="Its name.")
    text: str = Field(description="What of it matters here.")


NumPredict = Annotated[
    int | None,
    Field(ge=-2, description="Wins over `max_tokens`; 0 only readies the prompt, below 0 is no limit."),
]
NumProbs = Annotated[
    NumLogprobs,
    Field(description="Send each token's log probability and so many likeliest beside it."),
]
RepeatPenalty = Annotated[RepetitionPenalty, Field(description="Another name of `repetition_penalty`.")]


class InfillBody(Generation):
    """Body of POST /infill."""

    input_prefix: str = Field("", description="Text left of the gap.")
    input_suffix: str = Field("", description="Text right of the gap.")
    input_extra: list[ExtraFile] | None = Field(
        None, description="Pieces of other files, the most telling last; the first are left out for room."
    )
    prompt: str | None = Field(None, description="How the text in the gap begins.")
    n_predict: NumPredict = None
    n_probs: NumProbs = None
    repeat_penalty: RepeatPenalty = None

    def completion(self, context_length: int) -> CompletionBody:
        """The same in OpenAI's terms, as one answer."""
        prompt = self.input_prefix + (self.prompt or "")
        # An editor asks in an empty file too.
        prompt = prompt or ("" if self.input_suffix else "\n")
        return _completion(self, prompt, self.input_suffix, context_length)

    @property
    def context(self) -> list[tuple[str, str]]:
        return [(extra.filename, extra.text) for extra in self.input_extra or ()]


class LlamaCompletionBody(Generation):
    """Body of POST /completion."""

    prompt: Prompt
    n_predict: NumPredict = None
    n_probs: NumProbs = None
    repeat_penalty: RepeatPenalty = None

    def completion(self, context_length: int) -> CompletionBody:
        """The same in OpenAI's terms, as one answer."""
        return _completion(self, self.prompt, None, context_length)


def _completion(
    body: InfillBody | LlamaCompletionBody, prompt: str | list[int], suffix: str | None, context_length: int
) -> CompletionBody:
    given = {name: getattr(body, name) for name in Generation.model_fields}
    given["n"] = 1
    if body.n_predict is not None:
        # The prompt is prefilled for the sake of a token, and is then found in the cache.
        given["max_tokens"] = context_length if body.n_predict < 0 else max(1, body.n_predict)
    if body.n_predict == 0:
        given["min_tokens"] = None
    if body.repeat_penalty is not None:
        given["repetition_penalty"] = body.repeat_penalty
    if body.seed == -1:
        given["seed"] = None
    return CompletionBody.model_construct(
        prompt=prompt, suffix=suffix, logprobs=body.n_probs or None, **given
    )


class InfillStream:
    """Chunks with `content`, then one with `stop: true` and all figures; no `[DONE]`, as in llama.cpp."""

    media_type = EVENT_STREAM
    keep_alive = KEEP_ALIVE

    def __init__(self, model: str, silent: bool) -> None:
        self._model = model
        self._silent = silent
        self._choice = Choice()

    def render(self, index: int, event: Event) -> bytes:
        self._choice.add(event)
        if isinstance(event, Text) and (event.text or event.tokens) and not self._silent:
            piece = {"index": index, "content": event.text, "tokens": [], "stop": False}
            return _frame(piece | _probabilities(event.tokens))
        if isinstance(event, Finish):
            self._choice.tokens.clear()
            return _frame({**infill_reply(self._model, self._choice), "content": ""})
        return b""

    def close(self) -> bytes:
        return b""

    def fail(self, error: VermilionError) -> bytes:
        return _frame(openai_error(error))


def infill_reply(model: str, choice: Choice) -> dict[str, Any]:
    """llama.cpp's fields; the durations are split at the first settled text."""
    usage = choice.usage
    num_read = usage.prompt_tokens - usage.cached_tokens
    return {
        "index": 0,
        "content": choice.text,
        "tokens": [],
        "stop": True,
        "model": model,
        "tokens_predicted": usage.completion_tokens,
        "tokens_evaluated": usage.prompt_tokens,
        "tokens_cached": usage.cached_tokens,
        "truncated": False,
        "has_new_line": "\n" in choice.text,
        "stop_type": "word" if choice.stop_string else _STOP_TYPES.get(choice.reason, "none"),
        "stopping_word": choice.stop_string,
        **repeated(choice),
        "timings": {
            "cache_n": usage.cached_tokens,
            **_timing("prompt", num_read, choice.prompt_s),
            **_timing("predicted", usage.completion_tokens, choice.text_s),
        },
        **_probabilities(choice.tokens),
    }


def _probabilities(tokens: Sequence[TokenInfo]) -> dict[str, Any]:
    return {"completion_probabilities": scored(tokens, ids=True)} if tokens else {}


def _timing(name: str, num_tokens: int, duration_s: float) -> dict[str, float]:
    return {
        f"{name}_n": num_tokens,
        f"{name}_ms": duration_s * 1000,
        f"{name}_per_token_ms": duration_s * 1000 / max(1, num_tokens),
        f"{name}_per_second": num_tokens / max(duration_s, _LEAST_S),
    }


def _frame(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"


async def infill(context: RequestContext, body: InfillBody) -> Response:
    completion = body.completion(context.model.context_length)
    id = f"infill-{secrets.token_hex(12)}"
    requests = await chat.infill_requests(
        completion, body.context, context.served, context.service.config, id
    )
    return await _answered(context, body, requests)


async def completion(context: RequestContext, body: LlamaCompletionBody) -> Response:
    asked = body.completion(context.model.context_length)
    id = f"cmpl-{secrets.token_hex(12)}"
    requests = await chat.completion_requests(asked, context.served, context.service.config, id)
    return await _answered(context, body, requests)


async def _answered(
    context: RequestContext, body: InfillBody | LlamaCompletionBody, requests: list[Request]
) -> Response:
    readies = body.n_predict == 0
    if body.stream:
        return context.stream(requests, InfillStream(context.model.id, readies))
    (choice,) = await context.whole(requests)
    if readies:
        choice.texts.clear()
        choice.tokens.clear()
    return json_response(infill_reply(context.model.id, choice))


INFILL = operation(
    "llama.cpp",
    "Fill a gap in code",
    "As /v1/completions with a suffix, in llama.cpp's terms.",
    {"A gap": {"input_prefix": "def add(a, b):\n    return ", "input_suffix": "\n"}},
    {"content": "a + b", "stop": True, "tokens_predicted": 3, "tokens_evaluated": 18, "timings": {}},
    'data: {"index":0,"content":"a + b","tokens":[],"stop":false}\n\n',
)


COMPLETION = operation(
    "llama.cpp",
    "Continue a text",
    "As /v1/completions, in llama.cpp's terms; one prompt a request.",
    {"Continue": {"prompt": "Once upon a time", "n_predict": 32}},
    {"content": ", there was", "stop": True, "tokens_predicted": 32, "tokens_evaluated": 4, "timings": {}},
    'data: {"index":0,"content":", there","tokens":[],"stop":false}\n\n',
)
ROUTES = (
    Route("POST", "/infill", infill, INFILL, InfillBody),
    Route("POST", "/completion", completion, COMPLETION, LlamaCompletionBody),
)
