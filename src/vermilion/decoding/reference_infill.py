"""Infill again, as plainly as it can be said: every opinion from a forward of its own.

What is decided is shared with the engine's programs; how questions become rows, slots and reads is not, and
that is what the tests compare.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vermilion.decoding.between import HEAD, canvas_start, lengths, surest, trimmed
from vermilion.decoding.decoders import settle
from vermilion.decoding.infill import HEAD as SCORED
from vermilion.decoding.infill import (
    REACH,
    RIGHT,
    Candidate,
    bridge_lengths,
    bridges_of,
    candidates,
    chosen,
    line_decoding,
)
from vermilion.decoding.passes import Reading
from vermilion.decoding.program import Task
from vermilion.decoding.reference import Result, _Answer
from vermilion.models.families import Traits
from vermilion.models.transformer import Transformer
from vermilion.types import Request


def infill(
    model: Transformer, traits: Traits, request: Request, breaks: frozenset[int] = frozenset()
) -> Result:
    """The middle of `request`, by the decoding it names; `breaks`: the tokens that hold a line break."""
    answer = _Answer(model, traits, list(request.prompt), request.sampling, request.decoding)
    answer.adapter = request.adapter
    if traits.has_next_token:
        return _continued(answer, request, breaks)
    return _denoised(answer, request)


def _continued(answer: _Answer, request: Request, breaks: frozenset[int]) -> Result:
    limit, count = answer.limit, len(request.prompt)
    task = Task(
        request.prompt,
        request.sampling.max_tokens,
        request.decoding,
        frozenset(),
        request.suffix,
        breaks=breaks,
    )
    fills = [bridge for length in bridge_lengths(task) for bridge in _bridges(answer, request, length)]
    within = request.suffix[0] not in breaks
    answer.decoding = line_decoding(request.decoding)
    start = count
    while True:
        stopped = _write(answer, limit, breaks)
        if stopped and len(answer.tokens) == count + 1 and answer.tokens[-1] in breaks:
            breaks = frozenset()
            stopped = len(answer.tokens) < limit and _write(answer, limit, breaks)
        if stopped:
            answer.tokens.pop()
        answer.passes += 1
        line = answer.tokens[start:]
        tried = candidates(task, answer.tokens[count:start], line, fills)
        scores = [_scores(answer, start, candidate, request.suffix[:SCORED]) for candidate in tried]
        logprobs = [
            answer.base(answer.tokens[:p], [p], [answer.tokens[p]], since=p)[0].target_logprobs[0]
            for p in range(start, len(answer.tokens))
        ]
        winner = tried[chosen(tried, logprobs, scores, within)]
        middle = [*answer.tokens[count : start + winner.kept], *winner.bridge]
        if stopped or winner.kept < len(line) or winner.bridge or len(answer.tokens) >= limit:
            return Result(tuple(middle), answer.passes - 1, answer.edits)
        start, fills = len(answer.tokens), []


def _write(answer: _Answer, limit: int, breaks: frozenset[int]) -> bool:
    """Grow the continuation; whether an end of text or of the line stopped it."""
    ends = (*answer.traits.eos_token_ids, *breaks)
    answer.limit, answer.eos = min(limit, len(answer.tokens) + REACH), ends
    answer.ended = False
    if answer.decoding.decoder == "ar":
        answer.autoregress()
    else:
        answer.speculate()
    return answer.tokens[-1] in ends


def _bridges(answer: _Answer, request: Request, length: int) -> list[tuple[int, ...]]:
    wanted = [len(request.prompt) + i for i in range(length)]
    block = [*([None] * length), *request.suffix[:RIGHT]]
    return bridges_of(answer.canvas(request.prompt, block, wanted, ()))


def _scores(answer: _Answer, start: int, candidate: Candidate, head: Sequence[int]) -> list[float]:
    context = answer.tokens[: start + candidate.kept]
    text = [*context, *candidate.bridge, *head]
    # The whole continuation counts for the penalties, and nothing else.
    return [
        answer.base(text[:p], [p], [text[p]], since=sys.maxsize)[0].target_logprobs[0]
        for p in range(len(context), len(text))
    ]


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
