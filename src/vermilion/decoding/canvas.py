"""A canvas: consecutive positions between fixed text, some masked, that passes settle until none is.

What every way of using one shares is here: its noisy rows, the reads of its masks, what a pass settles and
the cap on passes. `blocks.py` opens one canvas behind the other; `filling.py` fills one between fixed text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp

from vermilion.decoding.decoders import settle
from vermilion.decoding.passes import Read, Reading, Segment
from vermilion.decoding.program import Open
from vermilion.models.families import Traits
from vermilion.types import Decoding

UNREAD = Reading(token=-1, logprob=0.0)
"""Of a position that was never masked."""


@dataclass(slots=True)
class MaskedCanvas:
    """Positions [start, start + len(ids)); those from `end` on are behind an EOS or the limit, or the turn of
    a later canvas of the same block."""

    start: int
    ids: list[int | None]
    """None is masked."""
    end: int = -1
    right: tuple[int | None, ...] = ()
    """Seen right of it: text, or masks that nobody reads."""
    readings: list[Reading] = field(default_factory=list)
    """Of each position that was ever masked, the latest."""
    steps: int = 0
    revisions: int = 0
    before: dict[int, int] = field(default_factory=dict)
    """Tokens that revision took back, by position."""
    edited: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.end = len(self.ids) if self.end < 0 else self.end
        self.readings = self.readings or [UNREAD] * len(self.ids)

    def masked(self) -> list[int]:
        return [i for i in range(self.end) if self.ids[i] is None]

    def filled(self) -> tuple[int, ...]:
        return tuple(token for token in self.ids if token is not None)

    def rows(self, traits: Traits, left: Sequence[int], slot: int) -> Segment:
        """Its noisy rows and those of what stands right of it, behind rows for the tokens `left` of it."""
        begin = self.start - len(left)
        noisy = [*self.ids, *self.right]
        return Segment(
            ids=(*left, *(traits.mask_token_id if token is None else token for token in noisy)),
            start=begin,
            slot=slot,
            sees=begin,
            span=0,
            noisy=True,
            masked=(*([False] * len(left)), *(token is None for token in noisy)),
        )

    def reads(self, row: int, shift: bool, history: tuple[int, ...]) -> list[Read]:
        """The reads of its masks; `row` is that of its first position."""
        return [Read(row + i - int(shift), self.start + i, "mask", history=history) for i in self.masked()]

    def fill(
        self, decoding: Decoding, readings: Sequence[Reading], cap: int, forced: Reading | None = None
    ) -> None:
        """Take in one pass: the readings of its masks, the first of which is not among them if `forced`
        gives it. No canvas outlives `cap` passes."""
        masked = self.masked()
        if forced is not None:
            self.ids[0], self.readings[0] = forced.token, forced
            masked = masked[1:]
        accepted = settle(decoding, readings, forced, (decoding.max_steps or cap) - self.steps)
        for i, reading in zip(masked, readings, strict=True):
            self.readings[i] = reading
        for index in accepted:
            self.ids[masked[index]] = readings[index].token
        self.steps += 1

    def view(self, first: int = 0) -> list[Open]:
        """Its positions from `first` on for a preview; guesses where it is masked."""
        return [
            Open(
                self.readings[i].token if token is None else token,
                masked=token is None,
                edited=self.start + i in self.edited,
                confidence=min(1.0, exp(self.readings[i].logprob)),
            )
            for i, token in enumerate(self.ids[: self.end])
            if i >= first
        ]
