"""Infill again, as plainly as it can be said: every opinion from a forward of its own.

What is decided is shared with the engine's programs; how questions become rows, slots and reads is not, and
that is what the tests compare.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vermilion.decoding.infill import (
    HEAD,
    REACH,
    RIGHT,
    Candidate,
    bridge_lengths,
    bridges_of,
    candidates,
    chosen,
    line_decoding,
)
from vermilion.decoding.program import Task
from vermilion.decoding.reference.reference_answer import ReferenceAnswer, Result
from vermilion.decoding.reference.reference_filling import fill_gap
from vermilion.models.families import Traits
from vermilion.models.transformer import Transformer
from vermilion.types import Request


def infill(
    model: Transformer, traits: Traits, request: Request, breaks: frozenset[int] = frozenset()
) -> Result:
    """The middle of `request`, by the decoding it names; `breaks`: the tokens that hold a line break."""
    if not traits.has_next_token:
        return fill_gap(model, traits, request)
    answer = ReferenceAnswer(model, traits, list(request.prompt), request.sampling, request.decoding)
    answer.adapter = request.adapter
    return _continued(answer, request, breaks)


def _continued(answer: ReferenceAnswer, request: Request, breaks: frozenset[int]) -> Result:
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
        scores = [_scores(answer, start, candidate, request.suffix[:HEAD]) for candidate in tried]
        logprobs = [
            answer.base(answer.tokens[:p], [p], [answer.tokens[p]], since=p)[0].target_logprobs[0]
            for p in range(start, len(answer.tokens))
        ]
        winner = tried[chosen(tried, logprobs, scores, within)]
        middle = [*answer.tokens[count : start + winner.kept], *winner.bridge]
        if stopped or winner.kept < len(line) or winner.bridge or len(answer.tokens) >= limit:
            return Result(tuple(middle), answer.passes - 1, answer.edits)
        start, fills = len(answer.tokens), []


def _write(answer: ReferenceAnswer, limit: int, breaks: frozenset[int]) -> bool:
    """Grow the continuation; whether an end of text or of the line stopped it."""
    ends = (*answer.traits.eos_token_ids, *breaks)
    answer.limit, answer.eos = min(limit, len(answer.tokens) + REACH), ends
    answer.ended = False
    if answer.decoding.decoder == "ar":
        answer.autoregress()
    else:
        answer.speculate()
    return answer.tokens[-1] in ends


def _bridges(answer: ReferenceAnswer, request: Request, length: int) -> list[tuple[int, ...]]:
    wanted = [len(request.prompt) + i for i in range(length)]
    block = [*([None] * length), *request.suffix[:RIGHT]]
    return bridges_of(answer.canvas(request.prompt, block, wanted, ()))


def _scores(answer: ReferenceAnswer, start: int, candidate: Candidate, head: Sequence[int]) -> list[float]:
    context = answer.tokens[: start + candidate.kept]
    text = [*context, *candidate.bridge, *head]
    # The whole continuation counts for the penalties, and nothing else.
    return [
        answer.base(text[:p], [p], [text[p]], since=sys.maxsize)[0].target_logprobs[0]
        for p in range(len(context), len(text))
    ]
