"""Rows that a canvas is read in beside its own: with a token out of its own sight, and without the prompt.

They stand in slots behind the canvas's. No other row sees them, and nothing of them is kept.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

from vermilion.decoding.passes import Read, Segment


def leave_one_out(rows: Segment, positions: Sequence[int], mask_token_id: int) -> list[Segment]:
    """For each of `positions` a mask there, which sees the noisy `rows` but the one at its position, and the
    other masks (WINO's shadow block)."""
    first = rows.slot + len(rows.ids)
    also = range(rows.slot, first + len(positions))
    segments = []
    for slot, position in enumerate(positions, first):
        hidden = rows.slot + position - rows.start, slot
        segments.append(
            Segment(
                (mask_token_id,),
                position,
                slot,
                rows.sees,
                span=1,
                noisy=True,
                masked=(True,),
                also=tuple(each for each in also if each not in hidden),
            )
        )
    return segments


def unconditional(rows: Segment, generated: Container[int], mask_token_id: int) -> Segment:
    """The whole text in `rows` again with all masked that was not `generated`; `generated`: positions."""
    kept = [rows.start + i in generated for i in range(len(rows.ids))]
    masked = rows.masked or (False,) * len(rows.ids)
    return replace(
        rows,
        ids=tuple(token if keep else mask_token_id for token, keep in zip(rows.ids, kept, strict=True)),
        masked=tuple(mask or not keep for mask, keep in zip(masked, kept, strict=True)),
        slot=rows.slot + len(rows.ids),
        sees=0,
    )


def guided(reads: Sequence[Read], rows: Segment, guidance: float) -> list[Read]:
    """The reads of `rows` with what `unconditional` rows right behind them say."""
    return [replace(read, against=read.row + len(rows.ids), guidance=guidance) for read in reads]
