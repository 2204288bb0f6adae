"""Rules of one denoise step: which of the masked positions that a pass has read settle now.

Pure functions of a `Step` on plain numbers. Ties go to the leftmost, so that a decision never depends on a
sort's internals. A rule never sees the tokens around a position, so it is the same for every family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from vermilion.decoding.noise import uniform
from vermilion.decoding.passes import Reading
from vermilion.types import Decoding

DREAM_EPSILON = 1e-3
"""Where Dream's time ends; it begins at 1."""
_FIRST_DRAW = 1 << 20
"""Rules draw numbers that no sampled token has drawn."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one pass says of a canvas of masks, and how far it has come."""

    decoding: Decoding
    readings: Sequence[Reading]
    """Of its masked positions, from left to right."""
    steps_left: int
    """Passes until its cap, this one included."""
    forced: Reading | None = None
    """Of a position that settles in this step anyway: a block's first token, from the base."""
    places: Sequence[int] = ()
    """Where on the canvas the readings are; empty: one behind the other."""
    opened: int = 0
    """Positions that were masked when it opened; 0: as many as now."""
    block: int = 0
    """Length of a block on a grid: a schedule counts its given positions too, as published samplers do."""
    number: int = 0
    """Passes before this one."""
    start: int = 0
    """Position of the canvas in the text; with `seed` the key of what is drawn."""
    seed: int = 0
    past: Sequence[Sequence[Reading]] = ()
    """Per reading the earlier ones of the same position, oldest first; kept for rules that ask for them."""
    ends: frozenset[int] = frozenset()
    """Tokens that end a text."""

    def place(self, index: int) -> int:
        return self.places[index] if self.places else index

    def drawn(self, index: int, draw: int) -> float:
        """A number in [0, 1) for one reading's position."""
        return uniform(self.seed, self.start + self.place(index), _FIRST_DRAW + draw)


Rule = Callable[[Step], list[int]]
"""Indexes of the readings that settle. With a forced one they may be none."""


def surest(readings: Sequence[Reading]) -> list[int]:
    """Indexes by falling confidence."""
    return sorted(range(len(readings)), key=lambda i: (-readings[i].logprob, i))


def log(probability: float) -> float:
    """Its natural logarithm; that of 0 is -inf."""
    return math.log(probability) if probability > 0 else -math.inf


def probability(reading: Reading) -> float:
    return math.exp(min(0.0, reading.logprob))


# -- how sure a position is ------------------------------------------------------------------------


def confident(step: Step) -> list[int]:
    """All of at least the threshold's confidence (Fast-dLLM, arXiv 2505.22618)."""
    bound = log(step.decoding.threshold)
    return [i for i, reading in enumerate(step.readings) if reading.logprob >= bound]


def dynamic(step: Step) -> list[int]:
    """All of enough confidence, or the schedule's share where they are fewer (SDAR, LLaDA2.0)."""
    chosen = confident(step)
    quota = _share(step)
    return chosen if len(chosen) >= quota else surest(step.readings)[:quota]


def factored(step: Step) -> list[int]:
    """The largest n for which (n + 1)(1 - p) is below the factor, p being the n-th highest confidence
    (Fast-dLLM, arXiv 2505.22618, theorem 1)."""
    chosen: list[int] = []
    for i in surest(step.readings):
        if (len(chosen) + 2) * (1 - probability(step.readings[i])) >= step.decoding.factor:
            break
        chosen.append(i)
    return chosen


def bounded(step: Step) -> list[int]:
    """What is confident, and what `factor` allows at its rank with at least the lower threshold
    (Nemotron-Labs-Diffusion)."""
    decoding, chosen = step.decoding, []
    for rank, i in enumerate(surest(step.readings)):
        p = probability(step.readings[i])
        ranked = p >= decoding.min_threshold and p >= 1 - decoding.factor / (rank + 2)
        if rank == 0 or p >= decoding.threshold or ranked:
            chosen.append(i)
    return chosen


def first_hit(step: Step) -> list[int]:
    """One position a pass, each as likely as any other: the first to leave its mask in continuous time
    (arXiv 2409.02908)."""
    return [min(range(len(step.readings)), key=lambda i: (step.drawn(i, 0), i))]


def cumulative(step: Step) -> list[int]:
    """Longest prefix by falling confidence whose joint probability stays at or above the threshold."""
    bound = log(step.decoding.threshold)
    total = 0.0 if step.forced is None else step.forced.logprob
    chosen: list[int] = []
    for i in surest(step.readings):
        total += step.readings[i].logprob
        if total < bound:
            break
        chosen.append(i)
    return chosen


def entropy_bounded(step: Step) -> list[int]:
    """Largest set by rising entropy whose entropies sum, the largest left out, to at most the threshold.

    That sum bounds the dependence ignored by settling them independently (EB-sampler, arXiv 2505.24857).
    """
    readings = step.readings
    return _within_bound(step, sorted(range(len(readings)), key=lambda i: (readings[i].entropy, i)))


def entropy_bounded_surest(step: Step) -> list[int]:
    """The same bound, in the order of confidence (RND1)."""
    return _within_bound(step, surest(step.readings))


def _within_bound(step: Step, order: Sequence[int]) -> list[int]:
    total = largest = 0.0 if step.forced is None else step.forced.entropy
    chosen: list[int] = []
    for i in order:
        total += step.readings[i].entropy
        largest = max(largest, step.readings[i].entropy)
        if total - largest > step.decoding.threshold:
            break
        chosen.append(i)
    return chosen


def least_dependent(entropies: Sequence[float], bound: float) -> list[int]:
    """Indexes, by rising entropy, of the positions before which the entropies sum to at most `bound` nats.

    The first always is one of them. For positions that are all decided anew in each step (DiffusionGemma).
    """
    total = 0.0
    chosen: list[int] = []
    for i in sorted(range(len(entropies)), key=lambda i: (entropies[i], i)):
        if total > bound:
            break
        chosen.append(i)
        total += entropies[i]
    return chosen


def near_and_sure(
    entropies: Sequence[float], distances: Sequence[int], threshold: float, penalty: float
) -> list[int]:
    """Indexes of the masks whose entropy plus `penalty` nats for each position from the first mask is below
    `threshold`; the lowest such sum where none is (WeDLM, arXiv 2512.22737)."""
    sums = [entropy + penalty * far for entropy, far in zip(entropies, distances, strict=True)]
    chosen = [i for i, total in enumerate(sums) if total < threshold]
    return chosen or [min(range(len(sums)), key=lambda i: (sums[i], i))]


# -- where a position stands -----------------------------------------------------------------------


def hierarchical(step: Step) -> list[int]:
    """The best of every run of masks, if above the lower threshold, and all that are confident: runs break
    up, so that few steps are left (dInfer)."""
    readings, decoding = step.readings, step.decoding
    low, high = log(decoding.min_threshold), log(decoding.threshold)
    chosen = {i for i, reading in enumerate(readings) if reading.logprob > high}
    for run in _runs(step):
        best = max(run, key=lambda i: (readings[i].logprob, -i))
        if readings[best].logprob > low:
            chosen.add(best)
    return list(chosen)


def _runs(step: Step) -> Iterator[list[int]]:
    """Indexes of masks that stand side by side."""
    run: list[int] = []
    for i in range(len(step.readings)):
        if run and step.place(i) != step.place(run[-1]) + 1:
            yield run
            run = []
        run.append(i)
    if run:
        yield run


def near_anchors(step: Step) -> list[int]:
    """All that are confident, and those near one of these that reach the lower threshold (LocalLeap)."""
    anchors = confident(step)
    low = log(step.decoding.min_threshold)
    return [
        i
        for i, reading in enumerate(step.readings)
        if i in anchors
        or (
            reading.logprob >= low
            and any(abs(step.place(i) - step.place(anchor)) <= step.decoding.radius for anchor in anchors)
        )
    ]


def leftmost(step: Step) -> list[int]:
    """The schedule's share from the left (SDAR's sequential strategy)."""
    return list(range(_share(step)))


def confident_prefix(step: Step) -> list[int]:
    """The masks left of the first that is not confident, the leftmost in any case (DMax)."""
    bound = log(step.decoding.threshold)
    stop = next((i for i, r in enumerate(step.readings) if r.logprob < bound), len(step.readings))
    return list(range(max(stop, int(step.forced is None))))


# -- how far the canvas has come -------------------------------------------------------------------


def scheduled(step: Step) -> list[int]:
    """Equal shares of what is left over the steps that are left (LLaDA, arXiv 2502.09992)."""
    return surest(step.readings)[: _share(step)]


def _share(step: Step) -> int:
    already = 0 if step.forced is None else 1
    share = math.ceil((len(step.readings) + already) / step.steps_left)
    if step.block:
        share = math.ceil((step.block - step.number) / (step.number + step.steps_left))
    return max(0, min(share - already, len(step.readings)))


def timed_by_confidence(step: Step) -> list[int]:
    """Dream's shares, surest first (`maskgit_plus`)."""
    return _timed(step, [reading.logprob for reading in step.readings], probability)


def timed_by_margin(step: Step) -> list[int]:
    """Dream's shares, first those whose likeliest token leads the next by most (`topk_margin`)."""
    margins = [math.exp(r.top[0][1]) - (math.exp(r.top[1][1]) if r.top[1:] else 0.0) for r in step.readings]
    return _timed(step, margins)


def timed_by_entropy(step: Step) -> list[int]:
    """Dream's shares, lowest entropy first (`entropy`)."""
    return _timed(step, [-reading.entropy for reading in step.readings])


def _timed(
    step: Step, scores: Sequence[float], weight: Callable[[Reading], float] | None = None
) -> list[int]:
    """As many of the highest `scores` as Dream's time schedule gives to this pass.

    With a position temperature they are drawn instead, without putting back, in proportion to
    exp(score / temperature); `weight` gives the score that is meant where `scores` only order.
    """
    already = 0 if step.forced is None else 1
    shares = dream_shares(step.opened or len(step.readings) + already, step.number + step.steps_left)
    count = shares[step.number] - already if step.number < len(shares) else len(step.readings)
    if step.decoding.position_temperature > 0:
        means = [weight(reading) for reading in step.readings] if weight else scores
        heat = step.decoding.position_temperature
        drawn = (step.drawn(i, step.number) for i in range(len(scores)))
        scores = [
            mean / heat - math.log(-math.log(number + 2e-17))
            for mean, number in zip(means, drawn, strict=True)
        ]
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return order[: max(0, count)]


def dream_shares(masked: int, steps: int) -> list[int]:
    """How many positions settle in each pass: floor(masked (1 - s / t)) as time runs from 1 to its end in
    equal steps, all in the last. Steps that settle none are left out, since a pass for them would read what
    the one before has read."""
    shares = []
    for i in range(steps):
        t, s = (1 - (1 - DREAM_EPSILON) * k / steps for k in (i, i + 1))
        count = masked if i == steps - 1 else int(masked * (1 - s / t))
        masked -= count
        shares += [count] if count else []
    return shares


def at_random_times(step: Step) -> list[int]:
    """Those whose turn is next: each position settles at a time of its own, uniform over the steps (Dream's
    `origin`, the ancestral sampler of masked diffusion)."""
    steps = step.number + step.steps_left
    turns = [int(steps * step.drawn(i, 0)) for i in range(len(step.readings))]
    return [i for i, turn in enumerate(turns) if turn == min(turns)]


# -- what earlier passes said ----------------------------------------------------------------------


def stable(step: Step) -> list[int]:
    """All that are confident and whose distribution has hardly moved in the last passes; where none is, the
    schedule's share (KLASS, arXiv 2511.05664)."""
    decoding, chosen = step.decoding, []
    for i in confident(step):
        seen = [*step.past[i], step.readings[i]][-decoding.stable_passes :]
        calm = all(reading.divergence < decoding.max_divergence for reading in seen)
        if calm and len(seen) == decoding.stable_passes:
            chosen.append(i)
    return chosen or surest(step.readings)[: _share(step)]


def credited(step: Step) -> list[Reading]:
    """The readings after each token's credit for having been the likeliest here in earlier passes (dInfer).

    Credit is the sum of p^power over the passes in which a token led, each multiplied by `credit_decay` per
    pass since; a logit grows by credit_weight x log(1 + credit). Where the token was drawn it stays, and only
    its probability changes.
    """
    return [
        _credited(step.decoding, reading, step.past[i] if step.past else ())
        for i, reading in enumerate(step.readings)
    ]


def _credited(decoding: Decoding, reading: Reading, past: Sequence[Reading]) -> Reading:
    logprobs = dict(zip(earlier_leaders(past), reading.target_logprobs, strict=True))
    logprobs[reading.top[0][0]] = reading.top[0][1]
    logprobs.setdefault(reading.token, reading.logprob)
    credit = dict.fromkeys(logprobs, 0.0)
    for one in (*past, reading):
        credit = {token: decoding.credit_decay * value for token, value in credit.items()}
        leader, logprob = one.top[0]
        credit[leader] += math.exp(decoding.credit_power * logprob)
    bonus = {token: decoding.credit_weight * math.log1p(value) for token, value in credit.items()}
    # The other tokens' share of the old sum stays as it is.
    total = 1 + math.fsum(math.exp(logprobs[token]) * math.expm1(bonus[token]) for token in logprobs)
    fused = {token: logprob + bonus[token] - math.log(total) for token, logprob in logprobs.items()}
    drawn = reading.token != reading.top[0][0]
    token = reading.token if drawn else max(fused, key=lambda token: (fused[token], -token))
    return replace(reading, token=token, logprob=fused[token])


def earlier_leaders(past: Sequence[Reading]) -> tuple[int, ...]:
    """The tokens that led at a position in earlier passes, each once: what `credited` needs the probability
    of."""
    return tuple(dict.fromkeys(reading.top[0][0] for reading in past))
