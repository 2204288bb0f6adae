"""Drafts that know the token before them, one row and one token at a time: the oracle of `following`."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, fsum, log

import torch
from torch import Tensor

from vermilion.decoding.commit import Level
from vermilion.decoding.passes import Choices, Reading
from vermilion.decoding.sampling import gumbel
from vermilion.models.transformer import Transformer
from vermilion.types import Sampling


def levels_of(
    model: Transformer,
    hidden_AH: Tensor,
    guesses: Sequence[Reading],
    root: int,
    positions: Sequence[int],
    sampling: Sampling,
) -> list[Level]:
    """What the guesses for consecutive `positions` offer; the token `root` stands before the first."""
    levels: list[Level] = []
    known = [root]
    for hidden_H, guess, position in zip(hidden_AH, guesses, positions, strict=True):
        given = {}
        if model.draft_head is not None:
            for token in known:
                choices = _behind(model, hidden_H, token, dict(guess.top))
                given[token] = _drawn(choices, position, sampling, model.architecture.vocab_size)
        sampled = not sampling.greedy
        levels.append(Level(((guess.token, guess.logprob),) if sampled else guess.top, given))
        known = [token for token, _ in guess.top]
    return levels


@torch.inference_mode()
def _behind(model: Transformer, hidden_H: Tensor, token: int, choices: dict[int, float]) -> dict[int, float]:
    """The choices' log-probabilities once `token` is known to stand before; together as likely as ever."""
    assert model.draft_head is not None
    before_1H = model.embedding.rows(torch.tensor([token], device=hidden_H.device))
    added_V = model.logits(model.draft_head(hidden_H[None], before_1H))[0].double()
    moved = {choice: value + float(added_V[choice]) for choice, value in choices.items()}
    gained = log(fsum(map(exp, choices.values()))) - log(fsum(map(exp, moved.values())))
    return {choice: value + gained for choice, value in moved.items()}


def _drawn(choices: dict[int, float], position: int, sampling: Sampling, vocab_size: int) -> Choices:
    """Likeliest first; the one choice that wins with the noise of its position where tokens are sampled."""
    if sampling.greedy:
        return tuple(sorted(choices.items(), key=lambda choice: -choice[1]))
    noise = gumbel(sampling.seed, position, vocab_size, torch.tensor([*choices])).tolist()
    heard = [value / sampling.temperature + more for value, more in zip(choices.values(), noise, strict=True)]
    return ([*choices.items()][heard.index(max(heard))],)
