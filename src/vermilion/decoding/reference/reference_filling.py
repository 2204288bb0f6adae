"""One canvas between fixed text again, as plainly as it can be said: every look is a forward over all of it.

What is decided is shared with `decoding/filling.py`; how questions become rows, slots and reads is not, and
that is what the tests compare.
"""

from __future__ import annotations

from collections.abc import Sequence

from vermilion.decoding.decoders import settle
from vermilion.decoding.filling import (
    SUFFIX_HEAD,
    filling_decoding,
    first_row,
    lengths,
    surest,
    trimmed,
)
from vermilion.decoding.passes import Reading
from vermilion.decoding.reference.reference_answer import ReferenceAnswer, Result
from vermilion.models.families import Traits
from vermilion.models.transformer import Transformer
from vermilion.types import Request


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
    answer = ReferenceAnswer(model, traits, list(request.prompt), request.sampling, request.decoding)
    answer.limit = 0
    decoding = filling_decoding(request.decoding)
    ids = list(request.seeds.ids)
    opened = [i for i, token in enumerate(ids) if token is None]
    cap = decoding.max_steps or len(opened)
    passes = 0
    while masked := [i for i in opened if ids[i] is None]:
        readings = _look(answer, ids, masked, request.seeds.ids[0] is None)
        for index in settle(decoding, readings, None, cap - passes):
            ids[masked[index]] = readings[index].token
        passes += 1
    tokens = tuple(token for i in opened if (token := ids[i]) is not None)
    return Result(tokens, passes - (traits.context != "full"), 0)


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
    history = [token for token in ids if token is not None]
    block = [*prompt[start:], *ids]
    if target is None:
        return answer.canvas(prompt[:start], block, wanted, history)
    answer.targets = (target,)
    return answer.canvas(prompt[:start], block, wanted, ())


def fill_gap(model: Transformer, traits: Traits, request: Request) -> Result:
    """The middle of `request` on a model without a base, and what it took."""
    answer = ReferenceAnswer(model, traits, list(request.prompt), request.sampling, request.decoding)
    answer.adapter = request.adapter
    answer.limit = 0  # No masks behind the suffix.
    known, suffix = len(request.prompt), request.suffix
    right = suffix if answer.traits.context == "full" else suffix[:SUFFIX_HEAD]
    sizes = lengths(request.sampling.max_tokens)
    tried = [_look_between(answer, [None] * size, right) for size in sizes]
    passes = _passes_of(known - first_row(answer.traits, known) + len(right), sizes)
    readings: Sequence[Reading] = tried[surest(tried)]
    middle: list[int | None] = [None] * len(readings)
    cap = request.decoding.max_steps or len(middle)
    step = 0
    while True:
        masked = [i for i, token in enumerate(middle) if token is None]
        for index in settle(request.decoding, readings, None, cap - step):
            middle[masked[index]] = readings[index].token
        step += 1
        if all(token is not None for token in middle):
            break
        readings = _look_between(answer, middle, right)
        passes += 1
    ends = frozenset((*answer.eos, answer.traits.mask_token_id))
    tokens = trimmed([token for token in middle if token is not None], suffix, ends)
    return Result(tokens, passes - (answer.traits.context != "full"), 0)


def _look_between(
    answer: ReferenceAnswer, middle: Sequence[int | None], right: Sequence[int]
) -> list[Reading]:
    start = first_row(answer.traits, len(answer.tokens))
    wanted = [len(answer.tokens) + i for i, token in enumerate(middle) if token is None]
    history = [token for token in middle if token is not None]
    return answer.canvas(answer.tokens[:start], [*answer.tokens[start:], *middle, *right], wanted, history)


def _passes_of(fixed: int, sizes: Sequence[int], rows: int = 96) -> int:
    """Forwards that trying `sizes` takes, as many as fit in each."""
    passes, used = 0, rows + 1
    for size in sizes:
        if used + size + fixed > rows:
            passes, used = passes + 1, 0
        used += size + fixed
    return passes
