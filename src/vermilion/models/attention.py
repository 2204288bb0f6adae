"""Attention over a pool of keys and values: what each row sees is intervals, until a kind plans them.

Shapes: N rows of the forward; G requests attended together, each with Q rows and K visible slots; H query
heads, J key/value heads, D head dim; S slots of the pool; T requests that the slot table has a row for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from vermilion.models.families import Architecture, LayerKind

Attend = Callable[[Tensor, Tensor], Tensor]
"""(queries [N, H, D], one layer's pool [S, 2, J, D]) -> [N, H, D]."""


@dataclass(frozen=True, slots=True)
class Visibility:
    """One request's rows in a forward, as intervals over its `length` logical slots.

    Row q sees what lies in [0, sees[q]), in [own_start[q], own_end[q]) or in its pairs of `also`, and not
    below lowest[q].
    """

    rows: Sequence[int]
    sees: Sequence[int]
    own_start: Sequence[int]
    own_end: Sequence[int]
    length: int
    table_row: int
    """The row of the slot table that maps logical slots to the pool's."""
    also: Sequence[tuple[int, int]] = ()
    """(row, slot) pairs seen besides."""
    lowest: Sequence[int] = ()
    """Of a sliding window; empty for none."""
    positions: Sequence[int] = ()
    """Of the rows; wanted where a layer has a window."""
    slots: Sequence[int] = ()
    """The logical slots of the rows' own keys; wanted where a layer has a window."""
    first_slot: int = -1
    """Where in the pool the slots begin if they are an unbroken run, to be read in place; else -1."""

    def within(self, window: int) -> Visibility:
        """The same where a row sees the last `window` positions only, its own included. Up to the row's own
        segment slots are positions; in it they count on from the row."""
        lowest = self.lowest or [0] * len(self.rows)
        first = [max(0, position - window + 1) for position in self.positions]
        own = [max(start, slot - window + 1) for start, slot in zip(self.own_start, self.slots, strict=True)]
        below = [max(pair) for pair in zip(lowest, first, strict=True)]
        return replace(self, own_start=own, lowest=below)


@dataclass(frozen=True, slots=True)
class Group:
    """Requests whose attention is one call."""

    rows_GQ: Tensor | None
    """None: all rows in order."""
    slots: Tensor | slice
    """Pool slots, [G, K], or the run of a single request's."""
    mask: Any
    """Of the kind that attends: a bias [G, fold x Q, K], or a BlockMask."""


class DenseAttention:
    """PyTorch's attention with a bias: any device, and the oracle of the other kinds.

    Buffers stay from one forward to the next: fresh memory costs the system more, page by page, than what is
    written into it. All slots that every row sees have a bias of zero, so only those behind are written.
    """

    def __init__(self, num_heads: int, pool: Tensor) -> None:
        """`pool` is like those that are attended, [..., S, 2, J, D]."""
        self._shape = pool.shape[-3:]
        self._fold = num_heads // pool.shape[-2]
        self._sheet = pool.new_zeros(0)
        self._written: list[Tensor] = []
        self._gathered = pool.new_empty(0)

    def plan(self, requests: Sequence[Visibility], table_TS: Tensor, num_rows: int) -> Attend:
        """One forward's attention. The bias is valid until the next call."""
        for part in self._written:
            part.zero_()
        self._written.clear()
        batches = _batched(requests)
        sizes = [_size(batch) for batch in batches]
        needed = sum(g * self._fold * q * k for g, q, k in sizes)
        if self._sheet.numel() < needed:
            self._sheet = self._sheet.new_zeros(2 * needed)
        groups, at = [], 0
        for batch, (num, count, length) in zip(batches, sizes, strict=True):
            size = num * self._fold * count * length
            sheet = self._sheet[at : at + size].view(num, self._fold, count, length)
            groups.append(_group(batch, table_TS, num_rows, self._mask(batch, sheet)))
            at += size
        return partial(self.attend, groups)

    def attend(self, groups: Sequence[Group], q_NHD: Tensor, pool_S2JD: Tensor) -> Tensor:
        """Softmax attention of every row over what it sees; returns [N, H, D]."""
        out_NHD = torch.empty_like(q_NHD)
        for group in groups:
            q_GQHD = q_NHD[None] if group.rows_GQ is None else q_NHD[group.rows_GQ]
            kv_GK2JD = self._keys(group.slots, pool_S2JD)
            o_GQHD = self._attended(q_GQHD, kv_GK2JD.permute(2, 0, 3, 1, 4), group.mask)
            if group.rows_GQ is None:
                return o_GQHD[0]
            out_NHD[group.rows_GQ] = o_GQHD
        return out_NHD

    def _keys(self, slots: Tensor | slice, pool_S2JD: Tensor) -> Tensor:
        if isinstance(slots, slice):
            return pool_S2JD[slots][None]
        size = slots.numel() * self._shape.numel()
        if self._gathered.numel() < size:
            self._gathered = self._gathered.new_empty(2 * size)
        kv = self._gathered[:size].view(slots.numel(), *self._shape)
        torch.index_select(pool_S2JD, 0, slots.flatten(), out=kv)
        return kv.view(*slots.shape, *self._shape)

    def _mask(self, batch: Sequence[Visibility], sheet_GFQK: Tensor) -> Any:
        limited = any(request.lowest for request in batch)
        seen_by_all = 0 if limited else min(min(request.sees) for request in batch)
        seen_by_all = min(seen_by_all, *(request.length for request in batch))
        visible_GQK = _intervals(batch, sheet_GFQK.device).visible(seen_by_all, sheet_GFQK.shape[-1])
        written = sheet_GFQK[..., seen_by_all:]
        written.masked_fill_(~visible_GQK[:, None], float("-inf"))
        self._written.append(written)
        return sheet_GFQK.flatten(1, 2)

    def _attended(self, q_GQHD: Tensor, kv_2GJKD: Tensor, mask: Any) -> Tensor:
        """The query heads that share a key head are folded into the rows, so keys are never repeated."""
        num, count, num_heads, size = q_GQHD.shape
        num_keys = kv_2GJKD.shape[2]
        q = q_GQHD.reshape(num, count, num_keys, self._fold, size).permute(0, 2, 3, 1, 4)
        q = q.reshape(num, num_keys, self._fold * count, size)
        keys, values = kv_2GJKD
        o = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask[:, None])
        o = o.reshape(num, num_keys, self._fold, count, size).permute(0, 3, 1, 2, 4)
        return o.reshape(num, count, num_heads, size)


class FlexAttention(DenseAttention):
    """PyTorch's FlexAttention, for GPUs: blocks of keys that no row sees cost nothing; no bias."""

    def __init__(self, num_heads: int, pool: Tensor) -> None:
        super().__init__(num_heads, pool)
        self._fold = 0
        on_gpu = pool.device.type == "cuda"
        self._kernel: Any = torch.compile(flex_attention, dynamic=True) if on_gpu else flex_attention

    def _mask(self, batch: Sequence[Visibility], sheet_GFQK: Tensor) -> Any:
        seen = _intervals(batch, sheet_GFQK.device)
        sizes = _size(batch)
        return create_block_mask(seen.mask_mod(), sizes[0], None, *sizes[1:], device=str(sheet_GFQK.device))

    def _attended(self, q_GQHD: Tensor, kv_2GJKD: Tensor, mask: Any) -> Tensor:
        assert isinstance(mask, BlockMask)
        o_GHQD: Tensor = self._kernel(q_GQHD.transpose(1, 2), *kv_2GJKD, block_mask=mask, enable_gqa=True)
        return o_GHQD.transpose(1, 2)


ATTENTION_KINDS: dict[str, type[DenseAttention]] = {"dense": DenseAttention, "flex": FlexAttention}
"""How intervals become attention. A further kind overrides `_mask` and `_attended`, or `plan` as a whole."""


class LayeredAttention:
    """The attention of layers: one plan for each window and shape of keys among them."""

    def __init__(
        self, layers: Sequence[LayerKind], num_heads: int, pool: Tensor, kind: str = "dense"
    ) -> None:
        """`kind`: of `ATTENTION_KINDS`."""
        make = ATTENTION_KINDS[kind]
        self._keys = [(each.window, each.num_kv_heads, each.head_dim) for each in layers]
        self._of_key = {
            (window, num, size): make(num_heads, pool.new_empty(0, 2, num, size))
            for window, num, size in self._keys
        }

    def plan(self, requests: Sequence[Visibility], table_TS: Tensor, num_rows: int) -> list[Attend]:
        """One forward's attention, layer by layer; valid until the next call."""
        planned = {}
        for key, attention in self._of_key.items():
            window = key[0]
            seen = [request.within(window) for request in requests] if window else requests
            planned[key] = attention.plan(seen, table_TS, num_rows)
        return [planned[key] for key in self._keys]


def explicit(
    architecture: Architecture, pool: Tensor, visible_NN: Tensor, positions_N: Tensor
) -> list[Attend]:
    """The attention of rows over the slots of a text, from who sees whom [rows, slots]; windows come on top.
    Slow, and the oracle of what plans intervals."""
    attends = list[Attend]()
    for kind in architecture.layer_kinds():
        seen_NN = visible_NN
        if kind.window:
            seen_NN = seen_NN & (positions_N[:, None] - positions_N[None] < kind.window)
        bias_NN = torch.zeros(seen_NN.shape, dtype=pool.dtype).masked_fill(~seen_NN, float("-inf"))
        shape = pool.new_empty(0, 2, kind.num_kv_heads, kind.head_dim)
        fold = architecture.num_heads // kind.num_kv_heads
        group = Group(None, slice(0, bias_NN.shape[1]), bias_NN.repeat(fold, 1)[None].to(pool.device))
        attends.append(partial(DenseAttention(architecture.num_heads, shape).attend, [group]))
    return attends


@dataclass(frozen=True, slots=True)
class _Intervals:
    """A batch's intervals on the device; `also` as (request, row, slot) of each pair."""

    sees_GQ: Tensor
    start_GQ: Tensor
    end_GQ: Tensor
    lowest_GQ: Tensor
    also_3P: Tensor

    def visible(self, first: int, end: int) -> Tensor:
        """bool [G, Q, end - first]: which of the slots from `first` on each row sees."""
        key = torch.arange(first, end, device=self.sees_GQ.device)
        sees, start, stop, lowest = (
            each[..., None] for each in (self.sees_GQ, self.start_GQ, self.end_GQ, self.lowest_GQ)
        )
        seen = (key < sees) | ((key >= start) & (key < stop))
        if self.also_3P.shape[1]:
            g, q, slot = self.also_3P[:, self.also_3P[2] >= first]
            seen[g, q, slot - first] = True
        return seen & (key >= lowest)

    def mask_mod(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        listed = bool(self.also_3P.shape[1])
        size = int(self.also_3P[2].max()) + 1 if listed else 1
        also_GQS = self.sees_GQ.new_zeros(*self.sees_GQ.shape, size, dtype=torch.bool)
        if listed:
            also_GQS[tuple(self.also_3P)] = True

        def visible(g: Tensor, h: Tensor, q: Tensor, key: Tensor) -> Tensor:
            own = (key >= self.start_GQ[g, q]) & (key < self.end_GQ[g, q])
            seen = (key < self.sees_GQ[g, q]) | own
            if listed:
                seen = seen | ((key < size) & also_GQS[g, q, key.clamp(max=size - 1)])
            return seen & (key >= self.lowest_GQ[g, q])

        return visible


def _intervals(batch: Sequence[Visibility], device: torch.device) -> _Intervals:
    count = len(batch[0].rows)
    columns = [(one.sees, one.own_start, one.own_end, one.lowest or [0] * count) for one in batch]
    sees, start, end, lowest = torch.tensor(columns, device=device).unbind(1)
    also = [(g, row, slot) for g, request in enumerate(batch) for row, slot in request.also]
    also_P3 = torch.tensor(also, dtype=torch.long, device=device).reshape(-1, 3)
    return _Intervals(sees, start, end, lowest, also_P3.T)


def _batched(requests: Sequence[Visibility]) -> list[list[Visibility]]:
    """Requests of equal row count and similar length, so that padding stays under half."""
    batches: list[list[Visibility]] = []
    for request in sorted(requests, key=lambda each: (len(each.rows), each.length)):
        first = batches[-1][0] if batches else None
        fits = first is not None and len(first.rows) == len(request.rows)
        if first is not None and fits and request.length <= 2 * first.length + 64:
            batches[-1].append(request)
        else:
            batches.append([request])
    return batches


def _size(batch: Sequence[Visibility]) -> tuple[int, int, int]:
    """(G, Q, K)"""
    return len(batch), len(batch[0].rows), max(request.length for request in batch)


def _group(batch: Sequence[Visibility], table_TS: Tensor, num_rows: int, mask: Any) -> Group:
    num, count, length = _size(batch)
    first = batch[0]
    whole = num == 1 and count == num_rows
    rows_GQ = None if whole else torch.tensor([list(r.rows) for r in batch], device=table_TS.device)
    if num == 1 and first.first_slot >= 0:
        return Group(rows_GQ, slice(first.first_slot, first.first_slot + length), mask)
    table_rows = torch.tensor([request.table_row for request in batch], device=table_TS.device)
    return Group(rows_GQ, table_TS[table_rows, :length], mask)
