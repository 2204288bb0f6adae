"""Prompting for canvases of which some is given: forms to fill in, and texts with holes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from string import ascii_lowercase, ascii_uppercase

from vermilion.errors import BadRequest, ContextLengthExceeded
from vermilion.serving.backend import Served
from vermilion.serving.generation import chat, model_names
from vermilion.serving.heavy_work import offload
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.wire.openai_bodies import ChatBody, Message
from vermilion.types import Request, Sampling, Seeds

_KEYS = (*ascii_uppercase, *ascii_lowercase, *map("".join, product(ascii_uppercase, repeat=2)))
"""What options are called where their own words begin alike."""


@dataclass(frozen=True, slots=True)
class FormQuestion:
    """One line of a form: what is asked, and what may stand there."""

    text: str
    options: tuple[str, ...]
    notes: tuple[str, ...]
    """What each option means; empty where it says so itself."""


async def form_request(
    state: str,
    questions: Sequence[FormQuestion],
    model: str | None,
    call: tuple[Served, ServeConfig],
    id: str,
) -> Request:
    """One pass over a form of one line per question, whose answers are open places.

    Raises `ModelNotFound`, `ContextLengthExceeded` and `BadRequest`.
    """
    served, config = call
    model_names.check_model(model, served.backend.model, config)
    num_options = sum(len(question.options) for question in questions)
    if num_options > served.backend.model.context_length:
        # Each is at least one token of the form.
        raise ContextLengthExceeded(served.backend.model.context_length, num_options)
    lines, ids, candidates = await offload(lambda: _form(questions, served))
    asked = "Answer each question about the text above in one line."
    content = "\n".join([state, "", asked, *lines])
    body = ChatBody.model_construct(messages=[Message(role="user", content=content)])
    prompt = await chat.chat_tokens(body, served)
    if len(prompt) + len(ids) > served.backend.model.context_length:
        raise ContextLengthExceeded(served.backend.model.context_length, len(prompt) + len(ids))
    return Request(
        id,
        tuple(prompt),
        Sampling(max_tokens=len(questions), logprobs=max(map(len, candidates))),
        seeds=Seeds(tuple(ids), tuple(candidates)),
        adapter=model_names.adapter_of(model, served.backend.model, config),
    )


def _form(
    questions: Sequence[FormQuestion], served: Served
) -> tuple[list[str], list[int | None], list[tuple[int, ...]]]:
    """The lines that ask, the tokens of those that answer with None for open places, and their candidates."""
    lines, ids, candidates = [], list[int | None](), []
    for number, question in enumerate(questions, 1):
        options, lead, places = _places(question, served)
        lines.append(_line(number, question, options))
        before = f"{chr(10) if number > 1 else ''}{number}:{lead}"
        ids += served.tokenizer.encode(before, special=False)
        ids.append(None)
        candidates.append(places)
    return lines, [*ids, *served.tokenizer.encode("\n", special=False)], candidates


def _line(number: int, question: FormQuestion, options: Sequence[str]) -> str:
    named = []
    for option, own, note in zip(options, question.options, question.notes, strict=True):
        meaning = ": ".join(part for part in (own if own != option else "", note) if part)
        named.append(f"{option} ({meaning})" if meaning else option)
    return f"{number}. {question.text} Options: {', '.join(named)}.".replace("  ", " ")


def _places(question: FormQuestion, served: Served) -> tuple[tuple[str, ...], str, tuple[int, ...]]:
    """What the options are called on the form, what stands before the answer, and the first token of each.

    Only first tokens are read, so they must differ; else letters stand for the options.
    """
    for lead in ("", " "):
        for options in (question.options, _KEYS[: len(question.options)]):
            blank = "" if lead else " "
            encoded = [served.tokenizer.encode(f"{blank}{option}", special=False) for option in options]
            firsts = tuple(tokens[0] for tokens in encoded if tokens)
            if len(options) == len(question.options) == len(set(firsts)):
                return tuple(options), lead, firsts
    raise BadRequest(
        f"questions: the model's vocabulary cannot tell {len(question.options)} options apart.",
        "questions",
        "invalid_value",
    )
