"""What one request asks of one forward pass, in plain integers, and what it gets back.

Every attention kind is the same sentence with other numbers. A row of a segment sees

    the logical slots [0, sees), the slots [slot, slot + reach) of its own segment, and those in `also`,

where `reach` ends at the row itself (causal: span 1), at the end of its block (block-causal: span = block
length, counted on absolute positions) or at the end of the segment (bidirectional: span 0). Logical slot p
holds the key and value of the clean token at position p; noisy rows borrow the slots behind the last clean
one and leave nothing there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Literal

from vermilion.frozen import frozen

Choices = tuple[tuple[int, float], ...]
"""(token, log-probability) pairs, likeliest first."""


@frozen
class Segment:
    """Rows at consecutive positions that see by the same rule."""

    ids: tuple[int, ...]
    start: int
    """Position of the first row."""
    slot: int
    """Logical slot of the first row's key and value."""
    sees: int
    span: int
    noisy: bool = False
    """Runs through the adapter of a gated model."""
    masked: tuple[bool, ...] = ()
    """Noisy rows that carry the mask embedding instead of a token."""
    also: tuple[int, ...] = ()
    """Further slots that every row sees: the ancestors in a tree of drafts."""
    mixed: tuple[Choices, ...] = ()
    """Of each noisy row what its embedding is a mixture of, with the mask for the rest; no choices where it
    carries its token."""
    conditioned: bool = False
    """Noisy rows that take in what the last pass read at their positions (self-conditioning)."""

    def part(self, positions: range) -> Segment:
        """The rows at `positions` alone, which see whatever stands in the slots of the others."""
        rows = slice(positions.start - self.start, positions.stop - self.start)
        slot, end = self.slot + rows.start, self.slot + len(self.ids)
        parts = {name: getattr(self, name)[rows] for name in ("ids", "masked", "mixed")}
        return replace(self, start=positions.start, slot=slot, sees=end, **parts)

    def reach(self, row: int) -> int:
        """How many of the segment's own rows `row` sees, counted from the first."""
        if self.span == 0:
            return len(self.ids)
        block_end = ((self.start + row) // self.span + 1) * self.span
        return min(len(self.ids), block_end - self.start)


Purpose = Literal["next", "mask", "check", "draft", "canvas"]


ON_IT = -2
"""`Read.after` of a draft whose own row stands on the token before its position."""


@frozen
class Read:
    """One row whose logits are wanted, and what for.

    next   the base model's own next token     mask   the denoiser's opinion of a masked position
    check  the base's probability of a target   draft  a guess that a later pass verifies
    canvas the denoiser's opinion of a position that is never masked; the next pass is conditioned on it
    """

    row: int
    """Counted over the pass's segments in order."""
    position: int
    """The position it predicts: with the seed, the key of the sampling noise."""
    purpose: Purpose
    targets: tuple[int, ...] = ()
    """Tokens whose log-probability is wanted too."""
    history: tuple[int, ...] = ()
    """Tokens between the settled answer and `position`, for the penalties."""
    top: int = 0
    """How many of the likeliest tokens are wanted."""
    after: int = -1
    """Of a draft: the read, by its index in the pass, that gives the token before `position`; -1 for none,
    `ON_IT` where its own row stands on that token. Draft heads then say what they would guess behind each
    token that may stand there."""
    divisor: float = 1.0
    """What the logits are divided by before anything else: the temperature of a schedule."""
    draw: int = -1
    """Which draw at this position this is, from 0, where a position is drawn anew in every pass: with the
    seed and the position the key of its noise. -1: the one draw that all passes repeat."""
    divergence: bool = False
    """Whether it is wanted how far the distribution has moved since the request's last such read of the
    position."""
    may_mask: bool = False
    """Whether the mask token may be chosen."""
    path: tuple[int, ...] | None = None
    """Of a canvas under a grammar: the tokens between the settled answer and `position`; None where they are
    not known."""
    banned: tuple[int, ...] = ()
    """Tokens that may not be chosen."""
    against: int = -1
    """A row whose logits count against this one's (classifier-free guidance), as `row` is; -1 for none."""
    guidance: float = 0.0
    """How much: the logits are those `against` and 1 + guidance times what this row adds to them."""

    @property
    def grammar_path(self) -> tuple[int, ...] | None:
        """Behind which tokens a grammar is asked what may follow; None for not at all."""
        return self.history if self.purpose == "next" else self.path


@frozen
class Reading:
    """What the model says of one position. Log-probabilities are natural, at temperature 1, after
    penalties and bias, before top-k, top-p and min-p."""

    token: int
    logprob: float
    entropy: float = 0.0
    """Nats; computed only for the decoders that use it."""
    target_logprobs: tuple[float, ...] = ()
    top: Choices = ()
    given: Mapping[int, Choices] = field(default_factory=dict)
    """Of a draft: the token before it to the choices behind that token, likeliest first."""
    divergence: float = math.inf
    """KL divergence from the request's last read of this position to this one, in nats; infinite if there is
    none or it was not asked for."""


@frozen
class Pass:
    """Everything one request wants computed in one forward."""

    segments: tuple[Segment, ...]
    reads: tuple[Read, ...] = ()
    moves: tuple[tuple[int, int], ...] = ()
    """(from, to): logical slots whose keys and values are copied before the forward, all at once."""
    reserve: int = 0
    """Slots behind its own that must exist too: the drafter's rows follow."""

    @property
    def num_rows(self) -> int:
        return sum(len(segment.ids) for segment in self.segments)

    @property
    def num_slots(self) -> int:
        """Logical slots that must exist: all that is seen or written."""
        slots = (max(segment.sees, segment.slot + len(segment.ids)) for segment in self.segments)
        return max(slots) + self.reserve
