"""One canvas between fixed text again, as plainly as it can be said: every look is a forward over all of it.

What is decided is shared with `decoding/filling.py`; how questions become rows, slots and reads is not, and
that is what the tests compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vermilion.decoding.canvas import step_cap
from vermilion.decoding.decoders import DECODERS
from vermilion.decoding.filling import (
    SUFFIX_HEAD,
    filling_decoding,
    first_row,
    growing_canvas,
    lengths,
    num_rows,
    surest,
    trimmed,
)
from vermilion.decoding.passes import Reading
from vermilion.decoding.reference.reference_answer import ReferenceAnswer, Result
from vermilion.decoding.reference.reference_block import Question, ReferenceBlock
from vermilion.models.families import Traits
from vermilion.models.transformer import Transformer
from vermilion.types import Decoding, Request


def read_seeds(model: Transformer, traits: Traits, request: Request) -> list[list[float]]:
    """Per open place the log-probabilities of its candidates."""
    assert request.seeds is not None
    answer = ReferenceAnswer(model, traits, list(request.prompt), request.sampling, request.decoding)
    answer.limit = 0  # No masks behind the canvas.
    ids = request.seeds.ids
    opened = [i for i, token in enumerate(ids) if token is None]
    logprobs = []
    for i, candidates in zip(opened, request.seeds.candidates, strict=True):
        targets = [_look(answer, ids, [i], ids[0] is None, candidate) for candidate in candidates]
        logprobs.append([reading[0].target_logprobs[0] for reading in targets])
    return logprobs


def fill_seeds(model: Transformer, traits: Traits, request: Request) -> Result:
    """The tokens of the open places, and what it took."""
    assert request.seeds is not None
    decoding = filling_decoding(request.decoding, gap=False)
    answer = ReferenceAnswer(model, traits, list(request.prompt), request.sampling, decoding)
    answer.limit = 0
    ids = request.seeds.ids
    return _filled(answer, answer.block(ids, len(request.prompt)), ids[0] is None, ())


def _filled(
    answer: ReferenceAnswer, canvas: ReferenceBlock, begins_open: bool, right: Sequence[int]
) -> Result:
    """Fill the block between the answer's prompt and `right`."""
    opened = list(canvas.opened)
    canvas.cap = step_cap(canvas.decoding, len(opened))
    start = first_row(answer.traits, len(answer.tokens), begins_open)
    left = len(answer.tokens) - start
    length = len(answer.tokens) + len(canvas.ids) + len(right)
    answer.given = {*range(length)} - {len(answer.tokens) + i for i in opened}

    def ask(questions: Sequence[Question]) -> list[Reading]:
        moved = [replace(question, place=question.place + left) for question in questions]
        answer.mixed = {len(answer.tokens) + place: choices for place, choices in canvas.mixed.items()}
        return answer.ask(answer.tokens[:start], [*answer.tokens[start:], *canvas.ids, *right], moved)

    passes = 0
    while not canvas.done and (None in canvas.ids or canvas.decoder.edit):
        canvas.step(len(canvas.ids), ask)
        passes += 1
    tokens = tuple(token for i in opened if (token := canvas.ids[i]) is not None)
    return Result(tokens, passes - (answer.traits.context != "full"), canvas.edits)


def _look(
    answer: ReferenceAnswer,
    ids: Sequence[int | None],
    places: Sequence[int],
    begins_open: bool,
    target: int | None = None,
) -> list[Reading]:
    """What the denoiser says of `places` of the canvas `ids`; with `target`, how likely that token is."""
    prompt = answer.tokens
    # An open first place is predicted by the token before it, which then is part of the canvas.
    start = first_row(answer.traits, len(prompt), begins_open)
    wanted = [len(prompt) + i for i in places]
    answer.given = {*range(len(prompt) + len(ids))} - {
        len(prompt) + i for i, it in enumerate(ids) if it is None
    }
    history = [token for token in ids if token is not None]
    block = [*prompt[start:], *ids]
    if target is None:
        return answer.canvas(prompt[:start], block, wanted, history)
    answer.targets = (target,)
    return answer.canvas(prompt[:start], block, wanted, ())


def fill_gap(model: Transformer, traits: Traits, request: Request) -> Result:
    """The middle of `request` on a model without a base, and what it took."""
    decoding = filling_decoding(request.decoding, gap=True)
    if DECODERS[decoding.decoder].grows:
        return grow(model, traits, request)
    answer = ReferenceAnswer(model, traits, list(request.prompt), request.sampling, decoding)
    answer.adapter = request.adapter
    answer.limit = 0  # No masks behind the suffix.
    known, suffix = len(request.prompt), request.suffix
    right = suffix if answer.traits.context == "full" else suffix[:SUFFIX_HEAD]
    sizes = lengths(request.sampling.max_tokens)
    tried = [_look_between(answer, [None] * size, right) for size in sizes]
    looks = _passes_of(decoding, known - first_row(answer.traits, known) + len(right), sizes)
    canvas = answer.block([None] * sizes[surest(tried)], known)
    filled = _filled(answer, canvas, True, right)
    ends = frozenset((*answer.eos, answer.traits.mask_token_id))
    # The pass that found its length is its first step.
    return Result(trimmed(filled.tokens, suffix, ends), filled.passes + looks - 1, filled.edits)


def grow(model: Transformer, traits: Traits, request: Request) -> Result:
    """The answer of `request`, or its middle, by a decoder that finds its length."""
    sampling, decoding, known = request.sampling, request.decoding, len(request.prompt)
    answer = ReferenceAnswer(model, traits, list(request.prompt), sampling, decoding)
    answer.adapter = request.adapter
    answer.limit = 0
    opened = growing_canvas(decoding, traits, known, sampling.max_tokens, request.suffix)
    canvas = answer.block(opened.ids, known)
    canvas.most = sampling.max_tokens
    canvas.cap = step_cap(decoding, sampling.max_tokens + len(opened.ids))
    passes = 0
    while not canvas.done:
        text = [*answer.tokens[:known], *canvas.ids, *opened.right]
        answer.given = {*range(len(text))} - {*range(known, known + len(canvas.ids))}

        def ask(questions: Sequence[Question], text: Sequence[int | None] = text) -> list[Reading]:
            return answer.ask([], text, [replace(each, place=each.place + known) for each in questions])

        canvas.step(len(canvas.ids), ask)
        passes += 1
        # What is final is text already, and counts as such for the penalties.
        answer.tokens[known:] = [token for token in canvas.ids[: canvas.final] if token is not None]
        ended = [i for i, token in enumerate(answer.tokens[known:]) if token in answer.eos]
        if ended:
            return Result(tuple(answer.tokens[known : known + ended[0] + 1]), passes, canvas.edits)
    tokens = tuple(token for token in canvas.ids if token is not None)
    if request.suffix:
        return Result(trimmed(tokens, request.suffix, frozenset(answer.eos)), passes, canvas.edits)
    ends = [i + 1 for i, token in enumerate(tokens) if token in answer.eos]
    return Result(tokens[: min(ends, default=len(tokens))], passes, canvas.edits)


def _look_between(
    answer: ReferenceAnswer, middle: Sequence[int | None], right: Sequence[int]
) -> list[Reading]:
    start = first_row(answer.traits, len(answer.tokens))
    wanted = [len(answer.tokens) + i for i, token in enumerate(middle) if token is None]
    length = len(answer.tokens) + len(middle) + len(right)
    answer.given = {*range(length)} - {*wanted}
    history = [token for token in middle if token is not None]
    return answer.canvas(answer.tokens[:start], [*answer.tokens[start:], *middle, *right], wanted, history)


def _passes_of(decoding: Decoding, fixed: int, sizes: Sequence[int], rows: int = 96) -> int:
    """Forwards that trying `sizes` takes, as many as fit in each."""
    passes, used = 0, rows + 1
    for size in sizes:
        more = num_rows(decoding, size, fixed)
        if used + more > rows:
            passes, used = passes + 1, 0
        used += more
    return passes
