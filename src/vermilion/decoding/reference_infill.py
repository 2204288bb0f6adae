"""Infill again, as plainly as it can be said: the same search, every opinion from a forward of its own.

What the search decides is shared with the engine's programs; how its questions become rows, slots and reads
is not, and that is what the tests compare.
"""

from __future__ import annotations

from collections.abc import Sequence

from vermilion.decoding.between import HEAD, canvas_start, lengths, surest, trimmed
from vermilion.decoding.commit import settle
from vermilion.decoding.gap import Bridge, Gap
from vermilion.decoding.infill import effort_of
from vermilion.decoding.passes import Reading
from vermilion.decoding.program import Task
from vermilion.decoding.reference import Result, _Answer
from vermilion.models.families import Traits
from vermilion.models.transformer import Transformer
from vermilion.types import Request


def infill(model: Transformer, traits: Traits, request: Request) -> Result:
    """The middle of `request`, by the decoding it names."""
    answer = _Answer(model, traits, list(request.prompt), request.sampling, request.decoding)
    if traits.has_next_token:
        return _searched(answer, request)
    return _denoised(answer, request)


def _searched(answer: _Answer, request: Request) -> Result:
    traits, sampling = answer.traits, request.sampling
    sampled = sampling.temperature > 0
    task = Task(request.prompt, sampling.max_tokens, request.decoding, frozenset(), request.suffix, sampled)
    banned = frozenset((*traits.eos_token_ids, traits.mask_token_id))
    gap = Gap(request.suffix, sampling.max_tokens, banned, effort_of(task))
    passes = 0
    while True:
        question = gap.ask()
        passes += 1
        base = [_next(answer, gap, node) for node in question.nodes]
        heads = [_head(answer, gap, node) for node in question.probes]
        fills = [_fill(answer, gap, bridge) for bridge in question.bridges]
        gap.learn(question, base, heads, fills)
        if gap.over:
            middle = gap.tokens(gap.end)
            return Result((*answer.tokens[len(request.prompt) :], *middle), passes - 1, 0)
        if gap.crowded:
            node = gap.halfway
            answer.tokens += gap.tokens(node)
            gap = gap.moved(node)


def _next(answer: _Answer, gap: Gap, node: int) -> Reading:
    known = [*answer.tokens, *gap.tokens(node)]
    since = len(answer.tokens)
    return answer.base(known, [len(known)], gap.targets(node), since=since)[0]


def _head(answer: _Answer, gap: Gap, node: int) -> list[Reading]:
    known = [*answer.tokens, *gap.tokens(node), *gap.head]
    first = len(known) - len(gap.head) + 1
    since = len(answer.tokens)
    return [
        answer.base(known[:position], [position], [known[position]], since=since)[0]
        for position in range(first, len(known))
    ]


def _fill(answer: _Answer, gap: Gap, bridge: Bridge) -> list[Reading]:
    middle, right = gap.tokens(bridge.node), gap.visible(bridge)
    known = [*answer.tokens, *middle]
    wanted = [len(known) + i for i in range(bridge.length)]
    block = [*([None] * bridge.length), *right]
    return answer.canvas(known, block, wanted, (*middle, *right))


def _denoised(answer: _Answer, request: Request) -> Result:
    answer.limit = 0  # No masks behind the suffix.
    known, suffix = len(request.prompt), request.suffix
    right = suffix if answer.traits.context == "full" else suffix[:HEAD]
    sizes = lengths(request.sampling.max_tokens)
    tried = [_look(answer, [None] * size, right) for size in sizes]
    passes = _passes_of(known - canvas_start(answer.traits, known) + len(right), sizes)
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
        readings = _look(answer, middle, right)
        passes += 1
    ends = frozenset((*answer.eos, answer.traits.mask_token_id))
    tokens = trimmed([token for token in middle if token is not None], suffix, ends)
    return Result(tokens, passes - (answer.traits.context != "full"), 0)


def _look(answer: _Answer, middle: Sequence[int | None], right: Sequence[int]) -> list[Reading]:
    start = canvas_start(answer.traits, len(answer.tokens))
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
