"""Drafts that know the token before them: what the draft head makes of one pass's guesses.

Each draft row has guessed from the settled text alone. For every token that may stand before its position,
its likeliest tokens are weighed anew, keeping the share of probability that they had together. Shapes: A
draft rows, P pairs of a row and a token before it, C choices of a row, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vermilion.decoding.passes import ON_IT, Choices, Reading
from vermilion.decoding.sampling import gumbel
from vermilion.models.draft_head import DraftHead
from vermilion.models.transformer import Transformer
from vermilion.types import Sampling


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft row of a forward; `index` and `after` count its readings."""

    index: int
    after: int
    """-1: behind nothing that is known; `ON_IT`: behind `before`."""
    before: int
    """The token that its row stands on."""
    position: int
    sampling: Sampling
    count: int
    """Choices to weigh, of those that the reading lists."""


def follow(
    model: Transformer,
    head: DraftHead,
    hidden_AH: Tensor,
    drafts: Sequence[Draft],
    readings: Sequence[Reading],
) -> list[Reading]:
    """`readings`, those of `drafts` with their `given`, as `head` says.

    Before a draft that follows another stand that one's choices, before one that follows a base row that
    row's token. Where tokens are sampled, one choice each: the likeliest under the noise of its position.
    """
    by_index = {draft.index: draft for draft in drafts}
    pairs = [(row, token) for row, draft in enumerate(drafts) for token in _before(draft, by_index, readings)]
    if not pairs:
        return list(readings)
    device = hidden_AH.device
    row_P = torch.tensor([row for row, _ in pairs], device=device)
    before_P = torch.tensor([token for _, token in pairs], device=device)
    count = max(draft.count for draft in drafts)
    tops = [readings[draft.index].top[: draft.count] for draft in drafts]
    padded = [[*top, *[(0, float("-inf"))] * (count - len(top))] for top in tops]
    choice_AC = torch.tensor([[token for token, _ in top] for top in padded], device=device)
    logprob_AC = torch.tensor(
        [[value for _, value in top] for top in padded], dtype=torch.float64, device=device
    )
    added_PH = head(hidden_AH[row_P], model.embedding.rows(before_P))
    added_PC = torch.einsum("ph,pch->pc", added_PH, model.output.rows(choice_AC[row_P]))
    old_PC = logprob_AC[row_P]
    new_PC = old_PC + added_PC.double()
    new_PC += torch.logsumexp(old_PC, -1, True) - torch.logsumexp(new_PC, -1, True)
    value_PC, order_PC = torch.sort(new_PC, dim=-1, descending=True, stable=True)
    token_PC = choice_AC[row_P].gather(-1, order_PC)
    noise = [
        _noise(draft, top, model.architecture.vocab_size) for draft, top in zip(drafts, tops, strict=True)
    ]
    given: list[dict[int, Choices]] = [{} for _ in drafts]
    for (row, before), tokens, values in zip(pairs, token_PC.tolist(), value_PC.tolist(), strict=True):
        found = tuple(zip(tokens, values, strict=True))[: len(tops[row])]
        given[row][before] = _chosen(found, drafts[row].sampling.temperature, noise[row])
    answered = list(readings)
    for draft, choices in zip(drafts, given, strict=True):
        answered[draft.index] = replace(readings[draft.index], given=choices)
    return answered


def _before(draft: Draft, by_index: Mapping[int, Draft], readings: Sequence[Reading]) -> list[int]:
    """The tokens that may stand before a draft's position."""
    if draft.after < 0:
        return [draft.before] if draft.after == ON_IT else []
    earlier = by_index.get(draft.after)
    if earlier is None:
        return [readings[draft.after].token]
    return [token for token, _ in readings[earlier.index].top[: earlier.count]]


def _noise(draft: Draft, top: Choices, vocab_size: int) -> dict[int, float]:
    """What sampling adds to the choices of this position; empty where nothing is sampled."""
    if draft.sampling.greedy:
        return {}
    tokens = [token for token, _ in top]
    noise = gumbel(draft.sampling.seed, draft.position, vocab_size, torch.tensor(tokens))
    return dict(zip(tokens, noise.tolist(), strict=True))


def _chosen(choices: Choices, temperature: float, noise: Mapping[int, float]) -> Choices:
    """All of them; where tokens are sampled the one that shares the base's noise, its likeliest choice."""
    if not noise:
        return choices
    return (max(choices, key=lambda choice: choice[1] / temperature + noise[choice[0]]),)
