"""Decisions: the probability of each answer to each question, from one pass over a form.

Inception's shape (`state`, `questions` by name) and OpenAI's (`input`, `questions` in order).
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi.responses import Response
from pydantic import BaseModel, Field, StrictBool, StrictStr

from vermilion.errors import BadRequest, ContextLengthExceeded
from vermilion.serving.generation.canvases import FormQuestion, form_request
from vermilion.serving.generation.choices import Choice
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import Route
from vermilion.serving.wire.openai_bodies import WIRE

_MOST_QUESTIONS = 400
_MOST_OPTIONS = 255
_KEPT = 256
"""Forms whose offsets are remembered; an application asks the same few again and again."""
_IMAGES = ("image", "image_url", "input_image")
_Said = str | dict[str, Any] | list[Any]


class NoulCriteria(BaseModel):
    model_config = WIRE

    true: _Said | None = None
    false: _Said | None = None


class NoulQuestion(BaseModel):
    model_config = WIRE

    type: Literal["noul"]
    instructions: _Said | None = None
    criteria: NoulCriteria | None = None


class ChoiceQuestion(BaseModel):
    model_config = WIRE

    type: Literal["choice"]
    instructions: _Said | None = None
    criteria: dict[str, _Said | None] = Field(min_length=1, max_length=_MOST_OPTIONS)


class ScoreQuestion(BaseModel):
    model_config = WIRE

    type: Literal["score"]
    instructions: _Said | None = None
    criteria: list[_Said] = Field(min_length=1, max_length=_MOST_OPTIONS)


class PredicateQuestion(BaseModel):
    model_config = WIRE

    type: Literal["predicate"]
    name: str | None = None
    instructions: str | list[Any]


class Alternative(BaseModel):
    model_config = WIRE

    value: StrictStr | StrictBool
    description: str | None = None


class AlternativesQuestion(BaseModel):
    model_config = WIRE

    type: Literal["choice"]
    name: str | None = None
    instructions: str | list[Any]
    choices: list[Alternative] = Field(min_length=2, max_length=_MOST_OPTIONS)


class RatingLevel(BaseModel):
    model_config = WIRE

    label: str
    description: str | None = None


class LevelsQuestion(BaseModel):
    model_config = WIRE

    type: Literal["score"]
    name: str | None = None
    instructions: str | list[Any]
    levels: list[RatingLevel] = Field(min_length=1, max_length=_MOST_OPTIONS)


_Named = Annotated[NoulQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]
_Listed = Annotated[PredicateQuestion | AlternativesQuestion | LevelsQuestion, Field(discriminator="type")]


class DecisionsBody(BaseModel):
    """Body of POST /v1/decisions: `state` with questions by name, or `input` with questions in a list."""

    model_config = WIRE

    model: str | None = Field(None, description="Id or alias of a served model; the only one if left out.")
    state: _Said | None = Field(None, description="What the questions are about; text or JSON.")
    input: str | list[Any] | None = Field(None, description="The same in OpenAI's shape; text or messages.")
    questions: (
        Annotated[dict[str, _Named], Field(min_length=1, max_length=_MOST_QUESTIONS)]
        | Annotated[list[_Listed], Field(min_length=1, max_length=_MOST_QUESTIONS)]
    ) = Field(description="What to decide, by name (with `state`) or in order (with `input`).")

    @property
    def param(self) -> str:
        return "input" if isinstance(self.questions, list) else "state"

    @property
    def text(self) -> str:
        """What it is all about. Raises `BadRequest`."""
        given = self.input if isinstance(self.questions, list) else self.state
        if given is None:
            raise BadRequest(
                f"{self.param}: this field is required with questions of this shape.",
                self.param,
                "missing_required_parameter",
            )
        if isinstance(self.questions, list) and isinstance(given, list):
            return "\n".join(_told(item, self.param) for item in given)
        return _told(given, self.param)

    @property
    def asked(self) -> list[FormQuestion]:
        listed = self.questions if isinstance(self.questions, list) else list(self.questions.values())
        return [_question(question) for question in listed]


def _told(said: object, param: str) -> str:
    """Words as they are, parts of text joined, whatever else as JSON. Raises `BadRequest` for images."""
    if said is None or isinstance(said, str):
        return said or ""
    if isinstance(said, dict):
        if said.get("type") in _IMAGES:
            raise BadRequest(f"{param}: images are not understood; this model reads only text.", param)
        if isinstance(said.get("text"), str):
            return str(said["text"])
        if "role" in said and "content" in said:
            return f"{said['role']}: {_told(said['content'], param)}"
    if isinstance(said, list) and any(isinstance(part, dict) and "type" in part for part in said):
        return "\n".join(_told(part, param) for part in said)
    return json.dumps(said, ensure_ascii=False)


def _question(asked: _Named | _Listed) -> FormQuestion:
    text = _told(asked.instructions, "questions")
    if isinstance(asked, PredicateQuestion):
        return FormQuestion(text, ("yes", "no"), ("", ""))
    if isinstance(asked, NoulQuestion):
        criteria = asked.criteria or NoulCriteria()
        meant = (_told(criteria.true, "questions"), _told(criteria.false, "questions"))
        return FormQuestion(text, ("yes", "no"), meant)
    if isinstance(asked, ChoiceQuestion):
        notes = tuple(_told(note, "questions") for note in asked.criteria.values())
        return FormQuestion(text, tuple(asked.criteria), notes)
    if isinstance(asked, AlternativesQuestion):
        options = tuple(_label(choice.value) for choice in asked.choices)
        return FormQuestion(text, options, tuple(choice.description or "" for choice in asked.choices))
    levels = asked.criteria if isinstance(asked, ScoreQuestion) else [_level(level) for level in asked.levels]
    notes = tuple(_told(level, "questions") for level in levels)
    return FormQuestion(text, tuple(map(str, range(len(levels)))), notes)


def _label(value: str | bool) -> str:
    return value if isinstance(value, str) else str(value).lower()


def _level(level: RatingLevel) -> str:
    return f"{level.label}: {level.description}" if level.description else level.label


def probabilities(logprobs: Sequence[float], offsets: Sequence[float]) -> list[float]:
    """Of each option, once what the model says of an empty state is taken off (arXiv 2102.09690)."""
    scores = [logprob - offset for logprob, offset in zip(logprobs, offsets, strict=True)]
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]


def named_answer(asked: _Named, found: Sequence[float]) -> dict[str, Any]:
    """In Inception's shape."""
    best = max(range(len(found)), key=lambda i: found[i])
    if isinstance(asked, NoulQuestion):
        return {"type": "noul", "noul": found[0]}
    if isinstance(asked, ChoiceQuestion):
        labels = list(asked.criteria)
        return {
            "type": "choice",
            "choice": labels[best],
            "confidence": found[best],
            "probabilities": dict(zip(labels, found, strict=True)),
        }
    return {
        "type": "score",
        "score": sum(level * share for level, share in enumerate(found)),
        "confidence": found[best],
        "legend": {str(level): meaning for level, meaning in enumerate(asked.criteria)},
        "probabilities": {str(level): share for level, share in enumerate(found)},
    }


def listed_answer(asked: _Listed, found: Sequence[float]) -> dict[str, Any]:
    """In OpenAI's shape."""
    best = max(range(len(found)), key=lambda i: found[i])
    head = {"type": asked.type, "name": asked.name}
    if isinstance(asked, PredicateQuestion):
        return {**head, "probability": found[0]}
    if isinstance(asked, AlternativesQuestion):
        rows = [
            {"value": choice.value, "probability": share}
            for choice, share in zip(asked.choices, found, strict=True)
        ]
        return {
            **head,
            "choice": asked.choices[best].value,
            "confidence": found[best],
            "probabilities": rows,
        }
    return {
        **head,
        "score": sum(level * share for level, share in enumerate(found)),
        "confidence": found[best],
        "probabilities": [
            {"label": level.label, "value": number, "probability": share}
            for number, (level, share) in enumerate(zip(asked.levels, found, strict=True))
        ],
    }


def decisions_reply(model: str, body: DecisionsBody, found: list[list[float]], choices: list[Choice]) -> Any:
    usage = choices[0].usage
    num_output = sum(choice.usage.completion_tokens for choice in choices)
    told = {"input_tokens": usage.prompt_tokens, "output_tokens": num_output}
    if isinstance(body.questions, dict):
        pairs = zip(body.questions.items(), found, strict=True)
        answers = {name: named_answer(asked, shares) for (name, asked), shares in pairs}
        return {"model": model, "answers": answers, "usage": told}
    return {
        "model": model,
        "answers": [listed_answer(*pair) for pair in zip(body.questions, found, strict=True)],
        "usage": {
            **told,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + num_output,
        },
    }


def _logprobs(choice: Choice) -> list[list[float]]:
    return [[logprob for _, _, logprob in token.top] for token in choice.tokens]


async def decisions(context: RequestContext, body: DecisionsBody) -> Response:
    questions, model = body.asked, context.answering(body.model)
    id, where = f"dec-{secrets.token_hex(12)}", (context.served, context.service.config)
    try:
        requests = [await form_request(body.text, questions, body.model, where, f"{id}-0")]
    except ContextLengthExceeded as error:
        error.param = body.param
        raise
    known = context.service.calibrations
    form = f"{context.service.owner()}\n{model}\n{context.service.adapter_loads[model]}\n{questions}"
    form = hashlib.sha256(form.encode("utf-8", "surrogatepass")).hexdigest()
    offsets = known.get(form)
    if offsets is None:
        requests.append(await form_request("", questions, body.model, where, f"{id}-1"))
    choices = await context.whole(requests)
    if offsets is None:
        offsets = _logprobs(choices[1])
    known[form] = offsets
    known.move_to_end(form)
    while len(known) > _KEPT:
        known.popitem(last=False)
    pairs = zip(_logprobs(choices[0]), offsets, strict=True)
    found = [probabilities(*pair) for pair in pairs]
    return json_response(decisions_reply(model, body, found, choices))


_QUESTIONS = {"kind": {"type": "noul", "instructions": "Is the text kind?"}}
DECISIONS = operation(
    "generation",
    "Decide questions about a text",
    "One read-only pass over a form gives the probability of every answer to every question; what the model "
    "says of an empty text is taken off. Inception's shape with `state`, OpenAI's with `input`.",
    {
        "Inception's": {"state": "Thank you so much!", "questions": _QUESTIONS},
        "OpenAI's": {
            "input": "Thank you so much!",
            "questions": [{"type": "predicate", "instructions": "The text is kind."}],
        },
    },
    {
        "model": "smollm2-135m-diffusion",
        "answers": {"kind": {"type": "noul", "noul": 0.81}},
        "usage": {"input_tokens": 31, "output_tokens": 1},
    },
)


ROUTES = (Route("POST", "/v1/decisions", decisions, DECISIONS, DecisionsBody),)
