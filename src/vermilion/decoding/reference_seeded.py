"""Seeded canvases again, as plainly as it can be said: a forward over everything for every look.

What is decided is shared with `decoding/seeded.py`; how questions become rows, slots and reads is not, and
that is what the tests compare.
"""

from __future__ import annotations

from collections.abc import Sequence

from vermilion.decoding.between import canvas_start
from vermilion.decoding.decoders import settle
from vermilion.decoding.passes import Reading
from vermilion.decoding.reference import Result, _Answer
from vermilion.decoding.seeded import filling
from vermilion.models.families import Traits
from vermilion.models.transformer import Transformer
from vermilion.types import Request


def read_seeds(model: Transformer, traits: Traits, request: Request) -> list[list[float]]:
    """Per open place the log-probabilities of its candidates."""
    assert request.seeds is not None
    answer = _Answer(model, traits, list(request.prompt), request.sampling, request.decoding)
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
    answer = _Answer(model, traits, list(request.prompt), request.sampling, request.decoding)
    answer.limit = 0
    decoding = filling(request.decoding)
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
    answer: _Answer,
    ids: Sequence[int | None],
    places: Sequence[int],
    begins_open: bool,
    target: int | None = None,
) -> list[Reading]:
    """What the denoiser says of `places` of the canvas `ids`; with `target`, how likely that token is."""
    prompt = answer.tokens
    # An open first place is predicted by the token before it, which then is part of the canvas.
    start = len(prompt) - int(begins_open)
    if answer.traits.context != "causal":
        start = canvas_start(answer.traits, len(prompt))
    wanted = [len(prompt) + i for i in places]
    history = [token for token in ids if token is not None]
    block = [*prompt[start:], *ids]
    if target is None:
        return answer.canvas(prompt[:start], block, wanted, history)
    answer.targets = (target,)
    return answer.canvas(prompt[:start], block, wanted, ())
