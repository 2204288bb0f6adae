"""How an answer is to be made: what a body says of sampling, decoding and length, checked and completed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vermilion.decoding.presets import resolve
from vermilion.errors import BadParameter, ContextLengthExceeded
from vermilion.serving.backend import Served
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.wire.openai_bodies import Generation
from vermilion.types import Decoding, ModelInfo, Request, Sampling

EFFORTS = {
    "none": ("fast",),
    "minimal": ("fast",),
    "instant": ("fast",),
    "low": ("balanced",),
    "medium": ("lossless", "balanced"),
    "high": ("lossless", "quality"),
    "xhigh": ("lossless", "quality"),
}
"""Preset of each `reasoning_effort`, the first that the model has. Effort is spent on decoding alone, never
on the answer's tokens."""
_SEEDS = 2**63
_FIRST_SPOKEN = 4
"""Rows of the first canvas of a `realtime` answer, unless it asks for another number."""
_DEFAULT_TOKENS = 256, 4096
_LEAST_TOP_P = 1e-6
MAX_STOP_LENGTH = 2048
"""Characters of all stop strings together: they are looked for behind every piece of text."""
MAX_LOGIT_BIAS = 1024
"""Tokens: every one is work at every position."""


def check_token(param: str, token: int, model: ModelInfo) -> None:
    if not 0 <= token < model.vocab_size:
        raise BadParameter(param, token, f"token ids from 0 to {model.vocab_size - 1}")


def sampling(body: Generation, model: ModelInfo, max_tokens: int, logprobs: int | None) -> Sampling:
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
        "stop_repetition": body.stop_repetition,
        "logprobs": logprobs,
    }
    stop_length = sum(map(len, body.stop or ()))
    if stop_length > MAX_STOP_LENGTH:
        raise BadParameter("stop", f"{stop_length} characters", f"at most {MAX_STOP_LENGTH} in all")
    if body.min_tokens and body.min_tokens > max_tokens:
        raise BadParameter("min_tokens", body.min_tokens, f"at most max_tokens, here {max_tokens}")
    return Sampling(**{name: value for name, value in given.items() if value is not None})


def _logit_bias(bias: Mapping[str, float], model: ModelInfo) -> dict[int, float]:
    if len(bias) > MAX_LOGIT_BIAS:
        raise BadParameter("logit_bias", f"{len(bias)} tokens", f"at most {MAX_LOGIT_BIAS}")
    checked = {}
    for name, value in bias.items():
        # isdecimal() alone takes digits of every script, and int() those of any length up to a limit.
        if not (name.isascii() and name.isdecimal() and len(name) <= len(str(model.vocab_size))):
            raise BadParameter("logit_bias", name, "token ids as strings of digits")
        check_token("logit_bias", int(name), model)
        checked[int(name)] = value
    return checked


def decoding(body: Generation, served: Served, config: ServeConfig, preset: str | None = None) -> Decoding:
    return resolve(served.backend.model, preset or body.preset or config.default_preset, body.decoding)


def default_limit(config: ServeConfig, model: ModelInfo) -> int:
    """Most tokens of a chat answer whose request names no limit: seconds, not minutes, of a small model."""
    least, most = _DEFAULT_TOKENS
    return config.default_max_tokens or min(most, max(least, model.context_length // 8))


def preset_of(effort: str, model: ModelInfo) -> str:
    """The preset of a `reasoning_effort`."""
    return next((name for name in EFFORTS[effort] if name in model.presets), model.default_preset)


def spoken(decoding: Decoding) -> Decoding:
    """`decoding` with canvases that begin short, for who waits for the first words."""
    return replace(decoding, first_block=decoding.first_block or _FIRST_SPOKEN)


def choices(base: Request, body: Generation, model: ModelInfo, param: str) -> list[Request]:
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
