"""From logits to readings: one set of tensor operations for all wanted rows, one transfer to the host.

Shapes: R wanted rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vermilion.decoding.forward_jobs import Wanted
from vermilion.decoding.noise import mixed, uniform
from vermilion.decoding.passes import Reading
from vermilion.types import Sampling

_CANDIDATES = 1024
"""Likeliest tokens among which top-p looks first."""


def read(logits_RV: Tensor, wanted: Sequence[Wanted], mask_token_id: int) -> list[Reading]:
    """Choose a token per row and measure it. Overwrites `logits_RV`.

    The mask token is chosen only where it may be, and never what a grammar forbids. At temperature 0 the
    choice is the likeliest token, else the maximum of logits / temperature + Gumbel noise within top-k, top-p
    and min-p: an exact sample, whose noise depends on (seed, position) alone. A row with a `draw` is sampled
    by the inverse of its distribution function, at a number that depends on (seed, position, draw). A row
    without finite numbers, or where all is forbidden, reads as token 0 with a log-probability of NaN; the
    rows beside it are as ever.
    """
    logits_RV = widened(logits_RV)
    if mask_token_id >= 0:
        masks = [row for row, want in enumerate(wanted) if not want.may_mask]
        logits_RV[masks if len(masks) < len(wanted) else slice(None), mask_token_id] = float("-inf")
    _adjust(logits_RV, wanted)
    _cool(logits_RV, wanted)
    _forbid(logits_RV, wanted)
    total_R = torch.logsumexp(logits_RV, -1)
    best_R, token_R = logits_RV.max(-1)
    sampled = [row for row, want in enumerate(wanted) if not want.sampling.greedy]
    if sampled:
        token_R = token_R.clone()
        for row in sampled:
            token_R[row] = _sample(logits_RV[row], wanted[row])
        best_R = logits_RV.gather(-1, token_R[:, None])[:, 0]
    columns = [token_R.double(), (best_R - total_R).double(), _entropy(logits_RV, total_R, wanted)]
    numbers = torch.stack(columns, 1).tolist()
    targets = _targets(logits_RV, total_R, wanted)
    tops = _tops(logits_RV, total_R, wanted)
    return [
        Reading(int(token), logprob, entropy, target, top)
        if math.isfinite(logprob)
        else Reading(0, math.nan, target_logprobs=(math.nan,) * len(target))
        for (token, logprob, entropy), target, top in zip(numbers, targets, tops, strict=True)
    ]


def widened(logits_RV: Tensor) -> Tensor:
    """At least float32."""
    return logits_RV.float() if logits_RV.dtype in (torch.bfloat16, torch.float16) else logits_RV


def _adjust(logits_RV: Tensor, wanted: Sequence[Wanted]) -> None:
    changed = [(row, want.adjustments) for row, want in enumerate(wanted) if want.adjustments is not None]
    if not changed:
        return
    device, dtype = logits_RV.device, logits_RV.dtype
    sizes = [len(changes.tokens) for _, changes in changed]
    rows = torch.from_numpy(np.repeat([row for row, _ in changed], sizes)).to(device)
    tokens = torch.from_numpy(np.concatenate([changes.tokens for _, changes in changed])).to(device)
    repetition, add = (
        torch.from_numpy(np.concatenate(column)).to(device, dtype)
        for column in zip(*((changes.repetition, changes.add) for _, changes in changed), strict=True)
    )
    old = logits_RV[rows, tokens]
    logits_RV[rows, tokens] = torch.where(old > 0, old / repetition, old * repetition) + add


def _cool(logits_RV: Tensor, wanted: Sequence[Wanted]) -> None:
    if any(want.divisor != 1.0 for want in wanted):
        divisor_R = torch.tensor([want.divisor for want in wanted], dtype=logits_RV.dtype)
        logits_RV /= divisor_R.to(logits_RV.device)[:, None]


def _forbid(logits_RV: Tensor, wanted: Sequence[Wanted]) -> None:
    for row, want in enumerate(wanted):
        if want.allowed:
            bits = np.unpackbits(np.frombuffer(want.allowed, np.uint8), bitorder="little")
            banned_V = torch.from_numpy(bits[: logits_RV.shape[1]] == 0).to(logits_RV.device)
            logits_RV[row].masked_fill_(banned_V, float("-inf"))


def _entropy(logits_RV: Tensor, total_R: Tensor, wanted: Sequence[Wanted]) -> Tensor:
    if not any(want.entropy for want in wanted):
        return torch.zeros(len(wanted), dtype=torch.float64, device=logits_RV.device)
    logprob_RV = logits_RV - total_R[:, None]
    entropy_R: Tensor = torch.special.entr(logprob_RV.exp()).sum(-1)
    return entropy_R.double()


def _targets(logits_RV: Tensor, total_R: Tensor, wanted: Sequence[Wanted]) -> list[tuple[float, ...]]:
    if not any(want.targets for want in wanted):
        return [()] * len(wanted)
    rows = torch.tensor(
        [row for row, want in enumerate(wanted) for _ in want.targets], device=logits_RV.device
    )
    tokens = torch.tensor([token for want in wanted for token in want.targets], device=logits_RV.device)
    values = iter((logits_RV[rows, tokens] - total_R[rows]).double().tolist())
    return [tuple(next(values) for _ in want.targets) for want in wanted]


def _tops(
    logits_RV: Tensor, total_R: Tensor, wanted: Sequence[Wanted]
) -> list[tuple[tuple[int, float], ...]]:
    listed = [row for row, want in enumerate(wanted) if want.top]
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(wanted)
    if not listed:
        return tops
    rows = torch.tensor(listed, device=logits_RV.device)
    values, tokens = torch.topk(logits_RV[rows], max(wanted[row].top for row in listed), dim=-1)
    values = (values - total_R[rows, None]).double()
    for row, token_row, value_row in zip(listed, tokens.tolist(), values.tolist(), strict=True):
        pairs = zip(token_row[: wanted[row].top], value_row, strict=False)
        tops[row] = tuple((token, value) for token, value in pairs if value > -math.inf)
    return tops


def _sample(logits_V: Tensor, want: Wanted) -> Tensor:
    sampling = want.sampling
    scaled = _filtered(logits_V.double() / sampling.temperature, sampling)
    kept = torch.isfinite(scaled).nonzero()[:, 0]
    if not len(kept):
        return torch.zeros((), dtype=torch.long, device=scaled.device)
    if want.draw >= 0:
        total = torch.softmax(scaled[kept], -1).cumsum(-1)
        number = uniform(sampling.seed, want.position, want.draw) * total[-1]
        return kept[min(int(torch.searchsorted(total, number, right=True)), len(kept) - 1)]
    noise = gumbel(sampling.seed, want.position, scaled.shape[-1], kept.cpu()).to(scaled.device)
    return kept[torch.argmax(scaled[kept] + noise)]


def _filtered(scaled_V: Tensor, sampling: Sampling) -> Tensor:
    """-inf outside top-k, top-p (the smallest set that holds that mass) and min-p, in this order."""
    if sampling.top_k and sampling.top_k < scaled_V.shape[-1]:
        scaled_V = scaled_V.masked_fill(
            scaled_V < torch.topk(scaled_V, sampling.top_k).values[-1], float("-inf")
        )
    if sampling.top_p < 1.0:
        inside_V = _nucleus(scaled_V, sampling.top_p, min(_CANDIDATES, scaled_V.shape[-1]))
        scaled_V = scaled_V.masked_fill(~inside_V, float("-inf"))
    if sampling.min_p > 0.0:
        probability = torch.softmax(scaled_V, -1)
        scaled_V = scaled_V.masked_fill(probability < sampling.min_p * probability.max(), float("-inf"))
    return scaled_V


def _nucleus(scaled_V: Tensor, top_p: float, num_candidates: int) -> Tensor:
    """bool [V]: the smallest set of likeliest tokens that holds `top_p`; of equals the lowest ids.

    Looked for among the `num_candidates` likeliest first: sorting a whole vocabulary took longer than a
    token's forward pass in a large batch.
    """
    size = scaled_V.shape[-1]
    ordered, _ = torch.topk(scaled_V, num_candidates)
    probability = (ordered - torch.logsumexp(scaled_V, -1)).exp()
    count = int((probability.cumsum(-1) - probability < top_p).sum())
    if count == num_candidates < size:
        return _nucleus(scaled_V, top_p, size)
    least = ordered[max(count, 1) - 1]
    inside_V = scaled_V > least
    equals = (scaled_V == least).nonzero()[:, 0]
    inside_V[equals[: max(count, 1) - int(inside_V.sum())]] = True
    return inside_V


def gumbel(seed: int, position: int, size: int, kept: Tensor) -> Tensor:
    """Standard Gumbel noise of the `kept` ids out of `size`, float64 on the CPU.

    An id's noise is a function of (seed, position, size) alone.

    float64 because float32 noise truncates the tail that rare tokens need (arXiv 2409.02908).
    """
    generator = torch.Generator().manual_seed(mixed(seed, position))
    noise_V: Tensor = torch.empty(size, dtype=torch.float64).exponential_(generator=generator)
    return -noise_V[kept].log()
