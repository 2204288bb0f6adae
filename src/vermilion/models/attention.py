"""Attention over explicit keys: which rows see which slots is data, worked out once per forward.

Shapes: N rows of the forward; G requests attended together, each with Q rows and K visible slots; H query
heads, J key/value heads, D head dim; S slots of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Visibility:
    """One request's rows in a forward, as intervals over its logical slots.

    Row q sees [0, sees[q]), [own_start[q], own_end[q]) and its pairs of `also`; `slots` maps logical to pool
    slots.
    """

    rows: Sequence[int]
    sees: Sequence[int]
    own_start: Sequence[int]
    own_end: Sequence[int]
    slots: Sequence[int]
    also: Sequence[tuple[int, int]] = ()
    """(row, slot) pairs seen besides."""
    contiguous: bool = False
    """Whether `slots` is an unbroken run, so that the pool can be read in place."""


@dataclass(frozen=True, slots=True)
class Group:
    """Requests whose attention is one call."""

    rows_GQ: Tensor | None
    """None: all rows in order."""
    gathered: tuple[Tensor, Tensor] | None
    """Rows of the pool seen as [S * 2 * J, D], and [2, G, J, K, D] that keys and values are gathered to.
    Every layer uses it again: a fresh one costs the system more time, page by page, than the copy itself."""
    run: tuple[int, int] | None
    """(first slot, length) instead where the keys lie in one piece."""
    bias_GQK: Tensor
    """0 where a row sees a slot, -inf where not; the query-head group is folded into Q."""


def plan_groups(
    requests: Sequence[Visibility], num_rows: int, heads_per_key: int, like: Tensor
) -> list[Group]:
    """Batch requests of equal row count and similar length, so that padding stays under half.

    `like` is the pool, [..., S, 2, J, D].
    """
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i].rows), len(requests[i].slots)))
    batches: list[list[Visibility]] = []
    for index in order:
        request = requests[index]
        if batches:
            first = batches[-1][0]
            same_rows = len(first.rows) == len(request.rows)
            if same_rows and len(request.slots) <= 2 * len(first.slots) + 64:
                batches[-1].append(request)
                continue
        batches.append([request])
    return [_group(batch, num_rows, heads_per_key, like) for batch in batches]


def _group(batch: Sequence[Visibility], num_rows: int, heads_per_key: int, like: Tensor) -> Group:
    device = like.device
    longest = max(len(request.slots) for request in batch)
    table = torch.tensor(
        [(request.sees, request.own_start, request.own_end) for request in batch], device=device
    )
    key = torch.arange(longest, device=device)
    sees, start, end = table[:, 0, :, None], table[:, 1, :, None], table[:, 2, :, None]
    visible = (key < sees) | ((key >= start) & (key < end))
    also = [(g, *pair) for g, request in enumerate(batch) for pair in request.also]
    if also:
        visible[tuple(torch.tensor(also, device=device).unbind(1))] = True
    bias = torch.zeros(visible.shape, dtype=like.dtype, device=device).masked_fill_(~visible, float("-inf"))
    bias = bias.repeat(1, heads_per_key, 1)
    rows = torch.tensor([list(request.rows) for request in batch], device=device)
    whole = len(batch) == 1 and len(batch[0].rows) == num_rows
    run = None
    gathered = None
    if len(batch) == 1 and batch[0].contiguous:
        run = (batch[0].slots[0], longest)
    else:
        num_keys, size = like.shape[-2:]
        padded = [[*request.slots, *([0] * (longest - len(request.slots)))] for request in batch]
        slots_GK = torch.tensor(padded, device=device)
        head_2J = torch.arange(2 * num_keys, device=device).view(2, 1, num_keys, 1)
        heads = (slots_GK[:, None] * 2 * num_keys + head_2J).flatten()
        gathered = heads, like.new_empty(2, len(batch), num_keys, longest, size)
    return Group(None if whole else rows, gathered, run, bias)


def attend(q_NHD: Tensor, pool_S2JD: Tensor, groups: Sequence[Group]) -> Tensor:
    """Softmax attention of every row over what it sees; returns [N, H, D].

    The query heads that share a key head are folded into the row dimension, so keys are never repeated.
    """
    num_heads, num_keys, size = q_NHD.shape[1], pool_S2JD.shape[2], q_NHD.shape[2]
    fold = num_heads // num_keys
    out_NHD = torch.empty_like(q_NHD)
    for group in groups:
        q = q_NHD[None] if group.rows_GQ is None else q_NHD[group.rows_GQ]
        num_g, num_q = q.shape[:2]
        q = q.reshape(num_g, num_q, num_keys, fold, size).permute(0, 2, 3, 1, 4)
        q = q.reshape(num_g, num_keys, fold * num_q, size)
        if group.run is not None:
            kv = pool_S2JD[group.run[0] : group.run[0] + group.run[1]][None]
            k, v = kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)
        else:
            assert group.gathered is not None
            heads_P, kv_2GJKD = group.gathered
            torch.index_select(pool_S2JD.view(-1, size), 0, heads_P, out=kv_2GJKD.view(-1, size))
            k, v = kv_2GJKD
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=group.bias_GQK[:, None])
        o = o.reshape(num_g, num_keys, fold, num_q, size).permute(0, 3, 1, 2, 4)
        o_GQHD = o.reshape(num_g, num_q, num_heads, size)
        if group.rows_GQ is None:
            out_NHD = o_GQHD[0]
        else:
            out_NHD[group.rows_GQ] = o_GQHD
    return out_NHD
