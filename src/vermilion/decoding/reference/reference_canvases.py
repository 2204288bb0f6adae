"""The decoders with a program of their own again, as plainly as they can be said.

Every step is a forward over the whole text, with its visibility written out. What the programs decide by is
shared; how questions become rows, slots and reads, and what is kept between passes, is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from vermilion.decoding.noise import uniform_token
from vermilion.decoding.passes import Reading
from vermilion.decoding.reference.reference_answer import ReferenceAnswer, Result
from vermilion.decoding.reference.reference_block import Question, ReferenceBlock
from vermilion.decoding.renoising import stands_still, steps, temperature
from vermilion.decoding.repetition import RepetitionWatch
from vermilion.decoding.rules import least_dependent, near_and_sure
from vermilion.decoding.sampling import read
from vermilion.models.families import Traits
from vermilion.models.transformer import Transformer
from vermilion.types import Decoding, Sampling


def denoise(
    model: Transformer, traits: Traits, prompt: Sequence[int], sampling: Sampling, decoding: Decoding
) -> Result:
    """The answer of `renoise`, of `reorder` or of a block decoder behind an anchor; the counterpart of
    `Reference.generate`."""
    answer = ReferenceAnswer(model, traits, list(prompt), sampling, decoding)
    if sampling.stop_repetition and not sampling.ignore_eos:
        answer.watch = RepetitionWatch()
    {"renoise": _renoise, "reorder": _reorder}.get(decoding.decoder, _fill_behind_anchors)(answer)
    return Result(tuple(answer.tokens[len(prompt) :]), answer.passes - 1, answer.edits)


def _renoise(answer: ReferenceAnswer) -> None:
    """Canvas after canvas of random tokens, each position decided anew in each step."""
    decoding, seed = answer.decoding, answer.sampling.seed
    vocab_size = answer.model.architecture.vocab_size
    while not answer.ended:
        start = len(answer.tokens)
        length = min(decoding.canvas_length(start - len(answer.prompt)), answer.limit - start)
        places = range(start, start + length)
        ids = [uniform_token(seed, place, 0, vocab_size) for place in places]
        likeliest: list[tuple[int, ...]] = []
        answer.signal_MH = torch.zeros(length, answer.model.architecture.hidden_size).to(
            answer.model.norm.weight
        )
        for step in range(steps(decoding)):
            answer.passes += 1
            readings = _conditioned(answer, ids, step)
            entropies = [reading.entropy for reading in readings]
            accepted = least_dependent(entropies, decoding.threshold)
            ids = [
                reading.token if i in accepted else uniform_token(seed, start + i, step + 1, vocab_size)
                for i, reading in enumerate(readings)
            ]
            likeliest.append(tuple(reading.top[0][0] for reading in readings))
            if stands_still(decoding, likeliest, entropies):
                break
        answer.settle_all(likeliest[-1])


@torch.inference_mode()
def _conditioned(answer: ReferenceAnswer, ids: Sequence[int], step: int) -> list[Reading]:
    """What the canvas says of itself; the next step is conditioned on that."""
    start, length = len(answer.tokens), len(ids)
    clean = torch.arange(start + length) < start
    visible = torch.where(clean[:, None], clean & _causal(start + length), True)
    logits = answer._forward(
        [*answer.tokens, *ids], [False] * (start + length), list(range(start + length)), start, visible
    )[start:]
    wanted = [
        replace(
            answer._wanted(start + i, (), (), start),
            divisor=temperature(answer.decoding, step),
            draw=step,
        )
        for i in range(length)
    ]
    readings = read(logits, wanted, answer.traits.mask_token_id)
    answer.signal_MH = answer.model.soft_embedding(torch.softmax(logits, -1))
    return readings


def _fill_behind_anchors(answer: ReferenceAnswer) -> None:
    """The clean rows' next token, then a block of masks behind it that stands still until it is full."""
    while not answer.ended:
        answer.passes += 1
        answer.settle(answer.base(answer.tokens, [len(answer.tokens)])[0].token)
        start = len(answer.tokens)
        length = min(answer.decoding.canvas_length(start - len(answer.prompt)) - 1, answer.limit - start)
        masks: list[int | None] = [None] * (0 if answer.ended else length)
        _fill(answer, masks, start)


def _fill(answer: ReferenceAnswer, masks: list[int | None], start: int) -> None:
    block = ReferenceBlock(
        answer.decoding, answer.traits, masks, start, answer.sampling.seed, frozenset(answer.eos)
    )

    def ask(questions: Sequence[Question]) -> list[Reading]:
        behind = [replace(question, place=question.place + 1) for question in questions]
        return answer.ask(answer.tokens[: start - 1], [answer.tokens[start - 1], *block.ids], behind)

    end = len(masks)
    while None in block.ids[:end] and not answer.ended:
        answer.passes += 1
        block.settled = len(answer.tokens) - start
        block.step(end, ask)
        ends = (i + 1 for i, token in enumerate(block.ids[:end]) if token in answer.eos)
        end = next(ends, end)
        for token in block.ids[len(answer.tokens) - start : end]:
            if token is None or answer.ended:
                break
            answer.settle(token)


def _reorder(answer: ReferenceAnswer) -> None:
    """A window of masks behind what is known, in causal attention over known tokens first."""
    decoding = answer.decoding
    filled: dict[int, int] = {}
    while not answer.ended:
        answer.passes += 1
        start = len(answer.tokens)
        window = range(start, min(start + decoding.block_length, answer.limit))
        masks = [place for place in window if place not in filled]
        readings = _reordered(answer, dict(sorted(filled.items())), masks)
        chosen = near_and_sure(
            [reading.entropy for reading in readings],
            [place - masks[0] for place in masks],
            decoding.threshold,
            decoding.distance_penalty,
        )
        filled |= {masks[i]: readings[i].token for i in chosen}
        while not answer.ended and len(answer.tokens) in filled:
            answer.settle(filled.pop(len(answer.tokens)))


def _reordered(answer: ReferenceAnswer, filled: Mapping[int, int], masks: Sequence[int]) -> list[Reading]:
    """What the masks say behind the tokens of the text and those filled further on."""
    start, mask = len(answer.tokens), answer.traits.mask_token_id
    ids = [*answer.tokens, *filled.values(), *([mask] * len(masks))]
    first = len(ids) - len(masks)
    logits = answer._forward(
        ids,
        [*([False] * first), *([True] * len(masks))],
        [*range(start), *filled, *masks],
        start,
        _causal(len(ids)),
    )
    wanted = [answer._wanted(place, tuple(filled.values()), (), start) for place in masks]
    return answer._read(logits, list(range(first, len(ids))), wanted)


def _causal(size: int) -> torch.Tensor:
    """bool [size, size]"""
    return torch.ones(size, size, dtype=torch.bool).tril()
