"""Rules of canvases that find out how long they are to be while they are filled: an answer, or a gap.

As in `editing.py` a step gives a canvas new contents, here also more or fewer of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vermilion.decoding.editing import Edited, EditStep
from vermilion.decoding.rules import log

# -- expansion and deletion (DreamOn) --------------------------------------------------------------


def dreamon(step: EditStep) -> Edited:
    """Fill the mask of lowest entropy, in the last step all of them.

    Where EXPAND is chosen two masks come of the place; an end of text takes out its place and the masks
    behind it, for the text on the right goes on there.
    """
    masked = step.masked()
    best = sorted(masked, key=lambda i: (step.readings[i].entropy, i))
    chosen = {i: step.readings[i].token for i in (best if step.steps_left <= 1 else best[:1])}
    end = min((i for i, token in chosen.items() if token in step.ends), default=len(step.ids))
    places: list[tuple[int | None, int | None]] = []
    for i, token in enumerate(step.ids):
        if token is None and i >= end:
            continue
        expands = i in chosen and chosen[i] == step.expand_token_id
        places += [(None, None), (None, None)] if expands else [(chosen.get(i, token), i)]
    return _edited(places)


def _edited(places: Sequence[tuple[int | None, int | None]]) -> Edited:
    """`places`: contents, and where each stood before; None where it is new."""
    ids, sources = tuple(token for token, _ in places), tuple(source for _, source in places)
    return Edited(ids, None not in ids, sources=sources)


# -- growth by confidence (DAEDAL) -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Window:
    """How far an answer has come that is filled block by block."""

    begin: int = -1
    """First place of the block; -1 while its length is looked for."""


def daedal(step: EditStep) -> Edited:
    """First grow while the model does not see the answer end, and put ends there. Then fill, in a window of
    the block's length, all that are confident, at least one, and make room in place of the least sure."""
    decoding, ids = step.decoding, step.ids
    begin = step.memory.begin if isinstance(step.memory, _Window) else -1
    ended, last = end_confidence(step), step.steps_left <= 1
    if begin < 0 and step.room and not last:
        short = ended < decoding.end_confidence
        more: tuple[int | None, ...] = (None,) * decoding.growth if short else _tail(step)
        places = [*zip(ids, range(len(ids)), strict=True), *((token, None) for token in more[: step.room])]
        return replace(_edited(places), memory=_Window(-1 if short else 0))
    begin = max(0, begin)
    masked = [i for i in step.masked() if last or begin <= i < begin + decoding.block_length]
    bound, low = log(decoding.threshold), log(decoding.min_threshold)
    ranked = sorted(masked, key=lambda i: (-step.readings[i].logprob, i))
    sure = [i for i in ranked if last or step.readings[i].logprob > bound] or ranked[:1]
    unsure = [i for i in ranked[::-1] if i not in sure and step.readings[i].logprob < low]
    places = []
    for i, token in enumerate(ids):
        grows = unsure[:1] == [i] and step.room > 0 and ended < decoding.last_growth
        filled = step.readings[i].token if i in sure else token
        places += [(None, None)] * min(decoding.growth, step.room + 1) if grows else [(filled, i)]
    edited = _edited(places)
    while begin < len(places) and None not in edited.ids[begin : begin + decoding.block_length]:
        begin += decoding.block_length
    return replace(edited, memory=_Window(begin), final=min(begin, len(places)))


def _tail(step: EditStep) -> tuple[int, ...]:
    """What closes an answer that is long enough: ends, half as many as are looked at."""
    return step.ends[:1] * (step.decoding.end_window // 2)


def end_confidence(step: EditStep) -> float:
    """The mean probability of the last `end_window` ends of text that are the likeliest at their places, as
    if those that are missing had none."""
    window = step.decoding.end_window
    ends = [reading for _, reading in sorted(step.readings.items()) if reading.token in step.ends]
    return math.fsum(math.exp(reading.logprob) for reading in ends[-window:]) / window
