"""Rules of decoders that take back what they have settled: a step gives a canvas new contents, also in
another arrangement. Pure functions of an `EditStep` on plain numbers; ties go to the leftmost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vermilion.decoding.noise import uniform
from vermilion.decoding.passes import Reading
from vermilion.decoding.rules import log
from vermilion.types import Decoding

_LOOP_BEGINS, _LOOP_ENDS, _LOOP_FILLED = 0.55, 0.05, 0.9
"""Between which times ReMDM's loop revises, and the share of positions that are filled meanwhile."""
_FIRST_DRAW = 1 << 21
_SURE = math.log(0.9)
"""Log-probability of the likeliest token at which DMax looks at a position no more."""


@dataclass(frozen=True, slots=True)
class EditStep:
    """What one pass says of a canvas whose filled positions may change."""

    decoding: Decoding
    ids: tuple[int | None, ...]
    """None is masked."""
    readings: Mapping[int, Reading]
    """By place; of the masks, and of what else the decoder reads."""
    steps_left: int
    """Passes until its cap, this one included."""
    number: int = 0
    """Passes before this one."""
    fixed: frozenset[int] = frozenset()
    """Places that are given: the prompt's, a text's around its gaps."""
    start: int = 0
    """Position of the canvas in the text; with `seed` the key of what is drawn."""
    seed: int = 0
    memory: object = None
    """What the rule said to remember after the step before; None in the first."""
    mask_token_id: int = -1
    delete_token_id: int = -1
    split_token_id: int = -1
    expand_token_id: int = -1
    ends: tuple[int, ...] = ()
    """Tokens that end a text, the usual one first."""
    room: int = 0
    """How many places may be added."""

    def masked(self) -> list[int]:
        return [i for i, token in enumerate(self.ids) if token is None]

    def drawn(self, place: int, draw: int) -> float:
        """A number in [0, 1) for a place."""
        return uniform(self.seed, self.start + place, _FIRST_DRAW + draw)


@dataclass(frozen=True, slots=True)
class Edited:
    """A canvas after one step."""

    ids: tuple[int | None, ...]
    done: bool = False
    memory: object = None
    sources: tuple[int | None, ...] = ()
    """Of each place, the one that its token stood at before; empty where none has moved."""
    final: int = 0
    """Leading places that no later step changes."""

    def taken_back(self, before: Sequence[int | None]) -> int:
        """How many of the tokens `before` it are no more."""
        kept = {
            old: self.ids[place]
            for place, old in enumerate(self.sources or range(len(self.ids)))
            if old is not None
        }
        return sum(token is not None and kept.get(i) != token for i, token in enumerate(before))


EditRule = Callable[[EditStep], Edited]
Sigma = Callable[[float, int, Mapping[int, float]], float]
"""(the largest that the noise schedule allows, place, log-probabilities that the filled places were filled
with) -> the probability of masking the place again."""


def _written(ids: Sequence[int | None], writes: Mapping[int, int | None]) -> tuple[int | None, ...]:
    return tuple(writes.get(i, token) for i, token in enumerate(ids))


def _surest(step: EditStep, places: Sequence[int]) -> list[int]:
    return sorted(places, key=lambda i: (-step.readings[i].logprob, i))


# -- joint threshold (LLaDA2.1) --------------------------------------------------------------------


def joint(step: EditStep) -> Edited:
    """Fill the masks above the threshold, at least one, and replace each token for which another is above the
    edit threshold; over when nothing changes, or after `post_steps` steps without a mask."""
    decoding, masked = step.decoding, step.masked()
    post_steps = int(step.memory or 0) + (not masked)  # type: ignore[call-overload]
    if post_steps > decoding.post_steps:
        return Edited(step.ids, True)
    tau, edit_tau = log(decoding.threshold), log(decoding.edit_threshold)
    filled = [i for i in masked if step.readings[i].logprob > tau] or _surest(step, masked)[:1]
    edited = [
        i
        for i, token in enumerate(step.ids)
        if token is not None
        and i not in step.fixed
        and step.readings[i].token != token
        and step.readings[i].logprob > edit_tau
    ]
    last = step.steps_left <= 1
    writes = {i: step.readings[i].token for i in (*(masked if last else filled), *edited)}
    return Edited(_written(step.ids, writes), last or not writes, post_steps)


# -- soft parallel decoding (DMax) ------------------------------------------------------------------


def soft_parallel(step: EditStep) -> Edited:
    """Fill the masks left of the first that is not confident, the leftmost in any case, and let every filled
    position become what it reads as now; over when all is filled and each is sure of some token, or none has
    changed."""
    masked, bound = step.masked(), log(step.decoding.threshold)
    stop = next((k for k, i in enumerate(masked) if step.readings[i].logprob < bound), len(masked))
    last = step.steps_left <= 1
    wait = set() if last else set(masked[max(stop, 1) :])
    ids = _written(step.ids, {i: each.token for i, each in step.readings.items() if i not in wait})
    sure = all(reading.top[0][1] >= _SURE for reading in step.readings.values())
    return Edited(ids, last or (not wait and (sure or ids == step.ids)))


# -- wide in, narrow out (WINO) --------------------------------------------------------------------

_FIRST_ACCEPTED = 30


def wino(step: EditStep) -> Edited:
    """Fill the masks above the threshold: at least one, at most 0.7 of them, from 5 to 20. Where that are
    several, mask again the tokens that are too unlikely where they stand, fewer than were filled before."""
    decoding, masked = step.decoding, step.masked()
    before = step.memory if isinstance(step.memory, int) else _FIRST_ACCEPTED
    last = step.steps_left <= 1
    tau, keep = log(decoding.threshold), log(decoding.keep_threshold)
    ranked = _surest(step, masked)
    most = len(masked) if last else min(max(int(0.7 * len(masked)), 5), 20)
    filled = ranked if last else [i for i in ranked if step.readings[i].logprob > tau][:most] or ranked[:1]
    stands = {i: step.readings[i].target_logprobs[0] for i in step.readings if step.ids[i] is not None}
    doubted = sorted((i for i, logprob in stands.items() if logprob < keep), key=lambda i: (stands[i], i))
    taken: list[int] = [] if last or len(filled) <= 1 else doubted[: before - 1]
    ids = _written(step.ids, {**{i: step.readings[i].token for i in filled}, **dict.fromkeys(taken)})
    return Edited(ids, None not in ids, len(filled))


# -- insertion and deletion (LLaDA2.2) -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InsertionMemory:
    """What `indel` knows of a canvas's past."""

    original: tuple[bool, ...]
    """Places that were masked when the canvas opened and have moved with their tokens since."""
    post_steps: int = 0
    updates: int = 0
    seen: frozenset[tuple[int | None, ...]] = frozenset()
    tried: Mapping[int, frozenset[int]] = field(default_factory=dict)
    """Tokens that were written at a place."""


def indel(step: EditStep) -> Edited:
    """Joint thresholds with two more tokens: DELETE takes a position out, SPLIT puts a mask before it.

    While masks of the canvas's beginning are left, each step fills one more than there are new ones. A state
    that comes back is left by a token that was not tried there. The budget counts the steps without an
    original mask; the last step fills everything with text.
    """
    decoding, ids, readings = step.decoding, step.ids, step.readings
    memory = step.memory
    if not isinstance(memory, InsertionMemory):
        memory = InsertionMemory(tuple(token is None for token in ids))
    masked = step.masked()
    original = [i for i in masked if memory.original[i]]
    post_steps = memory.post_steps + (not original)
    last = (
        (post_steps >= decoding.post_steps if decoding.post_steps else not original)
        or memory.updates >= len(ids) + decoding.post_steps
        or step.steps_left <= 1
    )
    choice = {
        i: _choice(step, i, {step.mask_token_id} if not last and i in original else ()) for i in readings
    }
    filled = masked if last else _filled(step, choice, masked, original)
    if decoding.post_steps == 0 and original and set(original) <= set(filled):
        last, filled = True, masked
    edit_tau = log(decoding.edit_threshold)
    edited = [
        i
        for i, token in enumerate(ids)
        if token is not None and i not in step.fixed and choice[i][0] != token and choice[i][1] > edit_tau
    ]
    places = sorted([*filled, *edited])
    if not places:
        return Edited(ids, True, memory)
    tokens = {i: choice[i][0] for i in places}
    if last:
        banned = (step.mask_token_id, step.delete_token_id, step.split_token_id)
        tokens = {i: _choice(step, i, banned)[0] if tokens[i] in banned else tokens[i] for i in places}
    elif ids in memory.seen:
        tokens |= _untried(step, memory, {i: choice[i] for i in places}, original)
    tried = {**memory.tried, **{i: memory.tried.get(i, frozenset()) | {tokens[i]} for i in places}}
    after, origin, sources = _rearranged(step, tokens, memory.original)
    changed = InsertionMemory(origin, post_steps, memory.updates + 1, memory.seen | {ids}, tried)
    return Edited(after, last, changed, sources)


def _choice(step: EditStep, place: int, banned: Sequence[int] | set[int]) -> tuple[int, float]:
    """The likeliest token that is not banned and its log-probability."""
    reading = step.readings[place]
    if reading.token not in banned:
        return reading.token, reading.logprob
    return next((pair for pair in reading.top if pair[0] not in banned), (reading.token, reading.logprob))


def _filled(
    step: EditStep, choice: Mapping[int, tuple[int, float]], masked: Sequence[int], original: Sequence[int]
) -> list[int]:
    """Which masks are filled before the last step."""
    if not original:
        return list(masked)
    quota = 1 + len(masked) - len(original)
    tau = log(step.decoding.threshold)
    above = [i for i in masked if choice[i][1] > tau]
    return above if len(above) >= quota else sorted(masked, key=lambda i: (-choice[i][1], i))[:quota]


def _untried(
    step: EditStep,
    memory: InsertionMemory,
    choice: Mapping[int, tuple[int, float]],
    original: Sequence[int],
) -> dict[int, int]:
    """Another token at the place of the least sure change."""
    changing = [i for i, (token, _) in choice.items() if token != _token(step, i)]
    if not changing:
        return {}
    place = min(changing, key=lambda i: (choice[i][1], i))
    banned = set(memory.tried.get(place, ())) | ({step.mask_token_id} if place in original else set())
    return {place: _choice(step, place, banned)[0]}


def _token(step: EditStep, place: int) -> int:
    token = step.ids[place]
    return step.mask_token_id if token is None else token


def _rearranged(
    step: EditStep, tokens: Mapping[int, int], original: Sequence[bool]
) -> tuple[tuple[int | None, ...], tuple[bool, ...], tuple[int | None, ...]]:
    """Contents, which of them are original, and where they stood; cut or filled with masks to the old
    length."""
    size = len(step.ids)
    places: list[tuple[int | None, bool, int | None]] = []
    for i, old in enumerate(step.ids):
        token = tokens.get(i, old)
        if token == step.split_token_id and i in tokens:
            places += [(None, False, None), (old, original[i], i)]
        elif token != step.delete_token_id or i not in tokens:
            places.append((None if token == step.mask_token_id else token, original[i], i))
    places = [*places[:size], *([(None, False, None)] * (size - len(places)))]
    contents, origin, sources = zip(*places, strict=True)
    return contents, origin, sources


# -- remasking (ReMDM, arXiv 2503.00307) -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Remasked:
    """What ReMDM knows of a canvas's past."""

    time: int = 0
    logprobs: Mapping[int, float] = field(default_factory=dict)
    """Of each filled place, when it was filled."""


def remask_capped(step: EditStep) -> Edited:
    """A filled position is masked again with a probability of at most `remask`."""
    return _remask(step, lambda most, place, logprobs: min(step.decoding.remask, most))


def remask_rescaled(step: EditStep) -> Edited:
    """With `remask` times the largest probability that the noise schedule allows."""
    return _remask(step, lambda most, place, logprobs: step.decoding.remask * most)


def remask_by_confidence(step: EditStep) -> Edited:
    """With a share of that probability that is larger, the less sure the position was when it was filled."""

    def sigma(most: float, place: int, logprobs: Mapping[int, float]) -> float:
        weights = {i: math.exp(-math.exp(logprob)) for i, logprob in logprobs.items()}
        return most * weights.get(place, 0.0) / max(math.fsum(weights.values()), 1e-300)

    return _remask(step, sigma)


def remask_in_loop(step: EditStep) -> Edited:
    """Plain steps until most is filled, then a time of remasking with `remask`, then plain steps again."""
    return _remask(step, lambda most, place, logprobs: step.decoding.remask, loop=True)


def _remask(step: EditStep, sigma: Sigma, *, loop: bool = False) -> Edited:
    """One step from time t to s; steps that find nothing masked need no reading and follow at once."""
    memory = step.memory if isinstance(step.memory, _Remasked) else _Remasked()
    total = step.number + step.steps_left
    ids, logprobs, time = list(step.ids), dict(memory.logprobs), memory.time
    readings = dict(step.readings)
    while time < total:
        now, then, revises = _shares_filled(1 - time / total, 1 - (time + 1) / total, loop)
        most = 1.0 if now <= 0 else min(1.0, (1 - then) / now)
        before, last = dict(logprobs), time == total - 1
        for i, token in enumerate(list(ids)):
            if i in step.fixed or (token is None and i not in readings):
                continue
            share = sigma(most, i, before) if revises and not last else 0.0
            if token is not None and step.drawn(i, 2 * time) < share:
                ids[i] = None
                logprobs.pop(i, None)
            elif token is None and (last or step.drawn(i, 2 * time + 1) < _reveal(now, then, share)):
                ids[i], logprobs[i] = readings[i].token, readings[i].logprob
        time, readings = time + 1, {}
        if None in ids:
            break
    done = time >= total and None not in ids
    return Edited(tuple(ids), done, _Remasked(time, logprobs))


def _shares_filled(t: float, s: float, loop: bool) -> tuple[float, float, bool]:
    """Shares of positions that are filled at times t and s, and whether filled ones may be masked between."""
    if not loop:
        return 1 - t, 1 - s, True
    if t > _LOOP_BEGINS:
        slope = _LOOP_FILLED / (1 - _LOOP_BEGINS)
        return (1 - t) * slope, min(1 - s, 1 - _LOOP_BEGINS) * slope, False
    if t <= _LOOP_ENDS:
        slope = (1 - _LOOP_FILLED) / _LOOP_ENDS
        return 1 - t * slope, 1 - s * slope, False
    return _LOOP_FILLED, _LOOP_FILLED, True


def _reveal(now: float, then: float, share: float) -> float:
    """With what probability a mask is filled."""
    return 1.0 if now >= 1 else (then - (1 - share) * now) / (1 - now)
