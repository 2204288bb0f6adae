"""Embeddings of rows that stand for several tokens at once: soft inputs (DMax, arXiv 2604.08302).

Shapes: R rows, K tokens of a mixture with the mask as the last of them, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vermilion.decoding.passes import Choices
from vermilion.models.transformer import Transformer

_LEAST_NORM = 1e-6
"""Added to a norm that is divided by, as published."""


def mixtures(model: Transformer, mixed: Mapping[int, Choices], mask_token_id: int) -> tuple[Tensor, Tensor]:
    """The rows [R] in `mixed` and their embeddings [R, H]: the mean of the tokens' by their
    probabilities, with what these leave to 1 for the mask's, and as long as these are in the mean."""
    width = max(map(len, mixed.values()))
    ids, shares = [], []
    for choices in mixed.values():
        padding = width - len(choices)
        share = [math.exp(logprob) for _, logprob in choices]
        ids.append([*(token for token, _ in choices), *[mask_token_id] * (padding + 1)])
        shares.append([*share, *[0.0] * padding, max(0.0, 1 - math.fsum(share))])
    device = model.norm.weight.device
    ids_RK = torch.tensor(ids, device=device)
    is_mask_RK = torch.arange(width + 1, device=device).expand_as(ids_RK) == width
    one_RKH = model.token_rows(ids_RK.flatten(), is_mask_RK.flatten()).view(*ids_RK.shape, -1)
    dtype = torch.promote_types(one_RKH.dtype, torch.float32)
    exact_RKH, share_RK = one_RKH.to(dtype), torch.tensor(shares, dtype=dtype, device=device)
    mean_RH = (exact_RKH * share_RK[..., None]).sum(1)
    length_R1 = (exact_RKH.norm(dim=-1) * share_RK).sum(1, keepdim=True)
    soft_RH = mean_RH * (length_R1 / (mean_RH.norm(dim=-1, keepdim=True) + _LEAST_NORM))
    return torch.tensor(list(mixed), device=device), soft_RH.to(one_RKH.dtype)
