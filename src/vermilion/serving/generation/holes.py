"""Texts with holes, any number of them, filled in one request."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

from fastapi.responses import Response
from pydantic import BaseModel, Field

from vermilion.errors import BadParameter, BadRequest, ContextLengthExceeded
from vermilion.serving.backend import Served
from vermilion.serving.generation import chat, model_names, parameters
from vermilion.serving.generation.choices import Choice, fold
from vermilion.serving.generation.events import generate_events
from vermilion.serving.generation.metering import together
from vermilion.serving.generation.structured_output import wanted_form
from vermilion.serving.heavy_work import offload
from vermilion.serving.http.connection import while_connected
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import Route
from vermilion.serving.wire.openai_bodies import WIRE, Generation
from vermilion.serving.wire.openai_replies import Head, usage_body
from vermilion.types import Event, Finish, FinishReason, ModelInfo, Request, Seeds, Text, Usage

_MOST_PARTS = 256
_MOST_PLACES = 512
_FREE_TOKENS = 64
_RIGHT = 64
"""Most tokens behind the last of some fixed holes that they see."""


class Hole(BaseModel):
    model_config = WIRE

    tokens: int | None = Field(None, ge=1, le=_MOST_PLACES, description="Its exact length; free if left out.")
    max_tokens: int | None = Field(
        None, ge=1, description=f"Most tokens of a free hole; {_FREE_TOKENS} unless the body says otherwise."
    )


class HolesBody(Generation):
    """Body of POST /v1/infill."""

    parts: list[str | Hole] = Field(
        min_length=1,
        max_length=_MOST_PARTS,
        description="The text in order: strings as they are, objects for holes.",
    )

    @property
    def checked(self) -> list[str | Hole]:
        """Raises `BadParameter` for holes that touch, and where there are none."""
        parts = [part for part in self.parts if part != ""]
        if not any(isinstance(part, Hole) for part in parts):
            raise BadParameter("parts", "no hole", "at least one object among the strings")
        for left, right in pairwise(parts):
            if isinstance(left, Hole) and isinstance(right, Hole):
                raise BadParameter("parts", "two holes in a row", "text between any two holes")
        return parts


@dataclass(slots=True)
class Filling:
    """Fills the holes from left to right: each sees what the ones before it came to, and the text up to the
    next. Neighbours of fixed length are denoised together on one canvas. One `Text` per hole."""

    served: Served
    parts: Sequence[str | Hole]
    reasons: list[FinishReason] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """Tokens of each hole."""

    @property
    def model(self) -> ModelInfo:
        return self.served.backend.model

    def prefilled(self, request_id: str) -> Usage:
        return self.served.backend.prefilled(request_id)

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """As `Source.generate` says; `request` tells everything but the text."""
        before, at, usages = "", 0, [Usage(len(request.prompt))]
        while at < len(self.parts):
            part = self.parts[at]
            if isinstance(part, str):
                before, at = before + part, at + 1
                continue
            run = self._fixed_run(at) if part.tokens else 1
            numbered = replace(request, id=f"{request.id}-{at}")
            step = await offload(partial(self._step, numbered, before, at, run))
            choice = Choice()
            async with aclosing(self.served.backend.generate(step)) as events:
                async for event in events:
                    choice.add(event)
                    if isinstance(event, Finish) and event.reason in ("error", "abort"):
                        yield replace(event, usage=together([*usages, event.usage]))
                        return
            # The text as it was given is what is asked; the steps read it anew with what they filled in.
            usages.append(replace(choice.usage, prompt_tokens=0, cached_tokens=0))
            texts = self._texts(choice, at, run)
            self.reasons += [choice.reason] * len(texts)
            spent = together(usages)
            for text in texts:
                yield Text(text, usage=spent)
            for filled in self.parts[at : at + run]:
                before += filled if isinstance(filled, str) else texts.pop(0)
            at += run
        yield Finish("length" if "length" in self.reasons else "stop", together(usages))

    def _fixed_run(self, at: int) -> int:
        """How many parts from a fixed hole on, up to the last fixed hole before a free one."""
        run, places = 1, 0
        for offset, part in enumerate(self.parts[at:]):
            if isinstance(part, Hole):
                places += part.tokens or _MOST_PLACES + 1
                if places > _MOST_PLACES:
                    break
                run = offset + 1
        return run

    def _encode(self, text: str) -> list[int]:
        return self.served.tokenizer.encode(text, special=False)

    def _step(self, request: Request, before: str, at: int, run: int) -> Request:
        """Raises `ContextLengthExceeded`."""
        hole = self.parts[at]
        assert isinstance(hole, Hole)
        after = self.parts[at + run] if at + run < len(self.parts) else ""
        assert isinstance(after, str)
        prompt, right = self._encode(before) or self._encode("\n"), self._encode(after)
        if hole.tokens is None:
            room = self.model.context_length - len(prompt) - len(right)
            if room < 1:
                raise ContextLengthExceeded(self.model.context_length, len(prompt) + len(right))
            most = min(hole.max_tokens or request.sampling.max_tokens, room)
            sampling = replace(request.sampling, max_tokens=most, min_tokens=0)
            return replace(request, prompt=tuple(prompt), suffix=tuple(right), sampling=sampling)
        ids: list[int | None] = []
        for part in self.parts[at : at + run]:
            ids += self._encode(part) if isinstance(part, str) else [None] * (part.tokens or 0)
        ids += right[:_RIGHT]
        num_given = len(prompt) + len(ids)
        if num_given > self.model.context_length:
            raise ContextLengthExceeded(self.model.context_length, num_given)
        # An end of text in a hole of fixed length would end nothing.
        sampling = replace(
            request.sampling, max_tokens=ids.count(None), min_tokens=len(ids), stop=(), logprobs=0
        )
        return replace(request, prompt=tuple(prompt), sampling=sampling, seeds=Seeds(tuple(ids)))

    def _texts(self, choice: Choice, at: int, run: int) -> list[str]:
        """What each hole of a step came to."""
        hole = self.parts[at]
        if isinstance(hole, Hole) and hole.tokens is None:
            self.tokens.append(choice.usage.completion_tokens)
            return [choice.text]
        ids, texts = [token.id for token in choice.tokens], []
        for part in self.parts[at : at + run]:
            if isinstance(part, Hole):
                count = part.tokens or 0
                texts.append(self.served.tokenizer.decode(ids[:count]))
                self.tokens.append(count)
                ids = ids[count:]
        return texts


def holes_reply(head: Head, parts: Sequence[str | Hole], choice: Choice, filling: Filling) -> dict[str, Any]:
    texts = list(choice.texts)
    whole = "".join(part if isinstance(part, str) else texts.pop(0) for part in parts)
    rows = zip(choice.texts, filling.reasons, filling.tokens, strict=True)
    return {
        "id": head.id,
        "object": "infill",
        "created": head.created,
        "model": head.model,
        "text": whole,
        "holes": [
            {"index": index, "text": text, "tokens": count, "finish_reason": reason}
            for index, (text, reason, count) in enumerate(rows)
        ],
        "usage": usage_body([choice.usage]),
    }


async def infill_holes(context: RequestContext, body: HolesBody) -> Response:
    parts = body.checked
    model_names.check_model(body.model, context.model, context.service.config)
    form = wanted_form(body)
    if form is not None:
        reason = f"{form.param}: not supported: what fills a hole keeps to no form."
        raise BadRequest(reason, form.param.partition(".")[0], "unsupported_parameter")
    head = Head(f"infill-{secrets.token_hex(12)}", context.answering(body.model))
    given = "".join(part for part in parts if isinstance(part, str))
    context.served.check_length(len(given), "parts")
    tokens = await chat.text_tokens(given or "\n", context.served)
    if len(tokens) >= context.model.context_length:
        error = ContextLengthExceeded(context.model.context_length, len(tokens))
        error.param = "parts"
        raise error
    request = Request(
        head.id,
        tuple(tokens),
        parameters.sampling(body, context.model, body.max_tokens or _FREE_TOKENS, None),
        parameters.decoding(body, context.served, context.service.config),
        adapter=model_names.adapter_of(body.model, context.model, context.service.config),
    )
    filling = Filling(context.served, parts)
    answers = generate_events(context.service, filling, [request])
    (choice,) = await while_connected(context.http.receive, fold(answers, 1))
    return json_response(holes_reply(head, parts, choice, filling))


_PARTS: list[Any] = ["def add(a, b):\n    return ", {}, "\n\nprint(add(", {"tokens": 1}, ", 2))\n"]
_EXAMPLE = Filling(None, _PARTS, ["stop", "stop"], [4, 1])  # type: ignore[arg-type]
HOLES = operation(
    "generation",
    "Fill any number of holes in a text",
    "Holes of free length are written from left to right towards the text behind them; neighbours of a "
    "fixed number of tokens are denoised together, each in sight of both sides.",
    {"Two holes": {"parts": _PARTS}},
    holes_reply(
        Head("infill-91c3", "smollm2-135m-diffusion", 1767225600),
        [
            "def add(a, b):\n    return ",
            Hole(tokens=None, max_tokens=None),
            "\n\nprint(add(",
            Hole(tokens=1, max_tokens=None),
            ", 2))\n",
        ],
        Choice(texts=["a + b", "1"], usage=Usage(24, 0, 5, 3)),
        _EXAMPLE,
    ),
)


ROUTES = (Route("POST", "/v1/infill", infill_holes, HOLES, HolesBody),)
