"""Attention masks of a forward that trains every block of a text at once.

A row of length L yields two streams over the same positions: the clean text, then its noisy copy, so that
stream index q < L is clean position q and L + q is noisy position q. Within one document:

    query     may look at clean j                           may look at noisy j
    clean i   causal: j <= i   block: block[j] <= block[i]   never
              full: any
    noisy i   causal, block: block[j] < block[i]  full: never  causal, block: the own block   full: any

So block b is denoised from the clean text before it alone, exactly as at inference, for all b at once.
Shapes: B rows, L positions, 2L both streams.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

Context = Literal["causal", "block", "full"]
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the documents and blocks of a batch lie; both int64 [B, L]."""

    document_BL: Tensor
    """Any numbers; equal ones are one document."""
    block_BL: Tensor
    """Counted through the row, so that no two documents share a block (`number_blocks`)."""
    context: Context


def number_blocks(document_BL: Tensor, position_BL: Tensor, length: int, shift_B1: Tensor) -> Tensor:
    """Block of every position, int64 [B, L], from 0 in each row.

    Blocks are `length` long from the start of each document, moved left by `shift_B1` (0 to length - 1), so
    that no alignment is learnt; a document's first and last block may be shorter.
    """
    local_BL = (position_BL + shift_B1) // length
    starts = torch.zeros_like(document_BL)
    changed = (local_BL[:, 1:] != local_BL[:, :-1]) | (document_BL[:, 1:] != document_BL[:, :-1])
    starts[:, 1:] = changed.long()
    return starts.cumsum(1)


def mask_mod(layout: Layout) -> MaskMod:
    """The table as FlexAttention wants it: f(batch, head, query, key) over both streams, elementwise."""
    document, block, length = layout.document_BL, layout.block_BL, layout.block_BL.shape[1]
    context = layout.context

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        noisy_q, noisy_k = q >= length, k >= length
        i, j = q % length, k % length
        block_i, block_j = block[b, i], block[b, j]
        if context == "full":
            return (document[b, i] == document[b, j]) & (noisy_q == noisy_k)
        clean_clean = j <= i if context == "causal" else block_j <= block_i
        clean = ~noisy_q & ~noisy_k & clean_clean
        before = noisy_q & ~noisy_k & (block_j < block_i)
        own = noisy_q & noisy_k & (block_j == block_i)
        return (document[b, i] == document[b, j]) & (clean | before | own)

    return visible


def flex_masks(layout: Layout) -> tuple[BlockMask, BlockMask]:
    """The table's two parts (`two_pass`) as FlexAttention's block masks."""
    visible, (num_rows, length) = mask_mod(layout), layout.block_BL.shape

    def noisy(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visible(b, h, q + length, k)

    def alone(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visible(b, h, q + length, k + length)

    device, both = layout.block_BL.device, layout.context != "full"
    made = create_block_mask(visible, num_rows, None, length, length, device=device)
    other = create_block_mask(
        noisy if both else alone, num_rows, None, length, length * (1 + both), device=device
    )
    return made, other


def dense(layout: Layout) -> Tensor:
    """The table as bool [B, 2L, 2L], True where the query (dim 1) sees the key (dim 2)."""
    num_rows, length = layout.block_BL.shape
    device = layout.block_BL.device
    at = torch.arange(2 * length, device=device)
    row = torch.arange(num_rows, device=device)[:, None, None]
    return mask_mod(layout)(row, at.new_zeros(()), at[None, :, None], at[None, None, :])


def two_pass(layout: Layout) -> tuple[Tensor, Tensor]:
    """The same in two parts: clean queries over clean keys [B, L, L]; noisy queries over both [B, L, 2L].

    Clean rows never look at noisy ones, so a clean pass can store its keys and values for the noisy pass.
    Built without the quarter of the table that is all False.
    """
    document, block, length = layout.document_BL, layout.block_BL, layout.block_BL.shape[1]
    same_BLL = document[:, :, None] == document[:, None, :]
    if layout.context == "full":
        return same_BLL, torch.cat([torch.zeros_like(same_BLL), same_BLL], 2)
    own_BLL = block[:, :, None] == block[:, None, :]
    before_BLL = same_BLL & (block[:, None, :] < block[:, :, None])
    if layout.context == "causal":
        triangle = torch.ones(length, length, dtype=torch.bool, device=block.device).tril()
        clean_BLL = same_BLL & triangle
    else:
        clean_BLL = before_BLL | own_BLL
    return clean_BLL, torch.cat([before_BLL, own_BLL], 2)
