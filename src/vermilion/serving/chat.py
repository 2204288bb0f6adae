"""From a checked body to engine requests; the only file of the service that knows prompting."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from vermilion.decoding.presets import resolve
from vermilion.errors import BadParameter, BadRequest, ContextLengthExceeded, ModelNotFound
from vermilion.serving.backend import Served
from vermilion.serving.config import ServeConfig
from vermilion.serving.openai import ChatBody, CompletionBody, Generation
from vermilion.types import Decoding, ModelInfo, Request, Sampling

DEFAULT_COMPLETION_TOKENS = 512
_INLINE_CHARACTERS = 16_384
"""Longer prompts are tokenised on a thread: some 10 ms of this core would hold up every other stream."""
_SEEDS = 2**63
_LEAST_TOP_P = 1e-6


async def chat_requests(body: ChatBody, served: Served, config: ServeConfig, id: str) -> list[Request]:
    """One request per choice. Raises `BadRequest` and `ModelNotFound`."""
    check_model(body.model, served.backend.model, config)
    template, tokenizer = served.template, served.tokenizer
    if template is None:
        raise BadRequest(
            f"{served.backend.model.id} has no chat template: it continues texts. Use /v1/completions.",
            code="chat_not_supported",
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise BadParameter("top_logprobs", body.top_logprobs, "nothing, unless logprobs is true")
    # Templates know the role by its older name.
    messages = [
        {"role": "system" if message.role == "developer" else message.role, "content": message.content}
        for message in body.messages
    ]
    num_characters = sum(len(message.content) for message in body.messages)
    prompt = await _encode(lambda: template.encode(messages, tokenizer), num_characters)
    sampling = _sampling(
        body,
        served.backend.model,
        max_tokens=body.max_completion_tokens or body.max_tokens or config.default_max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    base = Request(id, tuple(prompt), sampling, _decoding(body, served, config), canvas=bool(body.diffusing))
    return _choices(base, body, served.backend.model, "messages")


async def completion_requests(
    body: CompletionBody, served: Served, config: ServeConfig, id: str
) -> list[Request]:
    """One request per choice. Raises `BadRequest` and `ModelNotFound`."""
    model = served.backend.model
    check_model(body.model, model, config)
    prompt = await _token_ids(body.prompt, served)
    suffix = await _token_ids(body.suffix or "", served)
    if not prompt:
        if not suffix:
            raise BadParameter("prompt", body.prompt, "at least one token, or a suffix to write towards")
        # At the top of a file there is nothing to the left; a line break says as little as a token can.
        prompt = await _token_ids("\n", served)
    sampling = _sampling(
        body, model, max_tokens=body.max_tokens or DEFAULT_COMPLETION_TOKENS, logprobs=body.logprobs
    )
    base = Request(id, tuple(prompt), sampling, _decoding(body, served, config), tuple(suffix))
    return _choices(base, body, model, "prompt")


def check_model(name: str | None, model: ModelInfo, config: ServeConfig) -> None:
    """Raises `ModelNotFound` unless `name` is the served model, an alias of it, or not given."""
    if name and config.aliases.get(name, name) != model.id:
        raise ModelNotFound(name[:100], (model.id, *served_aliases(model, config)))


def served_aliases(model: ModelInfo, config: ServeConfig) -> list[str]:
    return [alias for alias, id in config.aliases.items() if id == model.id]


async def _encode(encode: Callable[[], list[int]], num_characters: int) -> list[int]:
    return encode() if num_characters < _INLINE_CHARACTERS else await asyncio.to_thread(encode)


async def _token_ids(prompt: str | list[int], served: Served) -> list[int]:
    if isinstance(prompt, str):
        return await _encode(lambda: served.tokenizer.encode(prompt, special=False), len(prompt))
    for token in prompt:
        _check_token("prompt", token, served.backend.model)
    return prompt


def _check_token(param: str, token: int, model: ModelInfo) -> None:
    if not 0 <= token < model.vocab_size:
        raise BadParameter(param, token, f"token ids from 0 to {model.vocab_size - 1}")


def _sampling(body: Generation, model: ModelInfo, max_tokens: int, logprobs: int | None) -> Sampling:
    """Fields left out or null take the defaults of `Sampling`."""
    given: dict[str, Any] = {
        "temperature": body.temperature,
        # 0 means the likeliest token alone; a limit of 0 would leave none.
        "top_p": None if body.top_p is None else max(body.top_p, _LEAST_TOP_P),
        "top_k": None if body.top_k is None else max(body.top_k, 0),
        "min_p": body.min_p,
        "seed": secrets.randbelow(_SEEDS) if body.seed is None else body.seed % _SEEDS,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": _logit_bias(body.logit_bias, model) if body.logit_bias else None,
        "stop": tuple(body.stop or ()),
        "max_tokens": max_tokens,
        "min_tokens": body.min_tokens,
        "ignore_eos": body.ignore_eos,
        "logprobs": logprobs,
    }
    if body.min_tokens and body.min_tokens > max_tokens:
        raise BadParameter("min_tokens", body.min_tokens, f"at most max_tokens, here {max_tokens}")
    return Sampling(**{name: value for name, value in given.items() if value is not None})


def _logit_bias(bias: Mapping[str, float], model: ModelInfo) -> dict[int, float]:
    checked = {}
    for name, value in bias.items():
        # isdecimal() alone takes digits of every script, and int() those of any length up to a limit.
        if not (name.isascii() and name.isdecimal() and len(name) <= len(str(model.vocab_size))):
            raise BadParameter("logit_bias", name, "token ids as strings of digits")
        _check_token("logit_bias", int(name), model)
        checked[int(name)] = value
    return checked


def _decoding(body: Generation, served: Served, config: ServeConfig) -> Decoding:
    decoding = resolve(body.preset, body.decoding, config.default_preset)
    decoders = served.backend.model.decoders
    if decoders and decoding.decoder not in decoders:
        raise BadParameter(
            "decoding.decoder", decoding.decoder, ", ".join(decoders), "The model cannot run other decoders."
        )
    return decoding


def _choices(base: Request, body: Generation, model: ModelInfo, param: str) -> list[Request]:
    """`base` once per choice, each with its own id and seed, none longer than the context has room for."""
    num_given = len(base.prompt) + len(base.suffix)
    room = model.context_length - num_given
    if room < 1:
        error = ContextLengthExceeded(model.context_length, num_given)
        error.param = param
        raise error
    max_tokens = min(base.sampling.max_tokens, room)
    min_tokens = min(base.sampling.min_tokens, max_tokens)
    return [
        replace(
            base,
            id=f"{base.id}-{index}",
            sampling=replace(
                base.sampling,
                seed=(base.sampling.seed + index) % _SEEDS,
                max_tokens=max_tokens,
                min_tokens=min_tokens,
            ),
        )
        for index in range(body.n or 1)
    ]
