"""The denoiser's predictions of hidden tokens of a known text, through the worker that serves.

Every block of a text is asked about at once: clean rows of the whole text, and behind them the noisy rows of
each block, which see the clean tokens before their block alone, as in decoding and in training.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vermilion.decoding.passes import Choices, Pass, Read, Segment
from vermilion.decoding.speculative import CHOICES
from vermilion.engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive positions of a text, some of them hidden."""

    start: int
    """With shift: the position of the visible token that anchors the block."""
    end: int
    hidden: tuple[int, ...]
    """Positions, ascending."""


@dataclass(frozen=True, slots=True)
class Guess:
    """The denoiser's prediction of one hidden position."""

    position: int
    offset: int
    """From the block's first position; with shift the first that can be hidden is 1."""
    token: int
    """Its likeliest token."""
    logprob: float
    """Of that token, in nats."""
    target_logprob: float
    """Of the token that the text has there."""
    given: Mapping[int, Choices] = field(default_factory=dict)
    """With a draft head: the token before it, if that is hidden too, to the choices behind that token."""

    def behind(self, token: int) -> int:
        """Its likeliest token once `token` stands before it."""
        return self.given[token][0][0] if token in self.given else self.token


@dataclass(frozen=True, slots=True)
class Cut:
    """How a text is cut into blocks."""

    block_length: int
    rate: float
    """Share of what may be hidden that is; at least one position of each block."""
    first: int = 0
    """Position of the first block."""
    anchored: bool = True
    """The first position of a block stays visible: models with shift start from a settled token."""


def blocks(length: int, cut: Cut, rng: random.Random) -> list[Block]:
    """The whole blocks of a text of `length` tokens, hidden positions drawn by `rng`."""
    found = []
    for start in range(cut.first, length - cut.block_length + 1, cut.block_length):
        candidates = range(start + cut.anchored, start + cut.block_length)
        count = max(1, round(cut.rate * len(candidates)))
        found.append(Block(start, start + cut.block_length, tuple(sorted(rng.sample(candidates, count)))))
    return found


def guesses(engine: Engine, tokens: Sequence[int], cut: Sequence[Block]) -> list[list[Guess]]:
    """The guesses for each block's hidden positions. Needs an idle engine, of a family whose clean tokens are
    seen causally or in blocks; blocks may overlap, for none sees another's noisy rows. Raises ValueError for
    other families."""
    traits = engine.traits
    if traits.context == "full":
        raise ValueError("a model that sees the whole text at once has no blocks to ask about")
    clean = Segment(tuple(tokens), start=0, slot=0, sees=0, span=traits.block_grid or 1)
    segments = [clean]
    reads: list[Read] = []
    shift = 1 if traits.shift else 0
    row = slot = len(tokens)
    for block in cut:
        positions = range(block.start, block.end)
        hidden = set(block.hidden)
        segments.append(
            Segment(
                ids=tuple(traits.mask_token_id if p in hidden else tokens[p] for p in positions),
                start=block.start,
                slot=slot,
                sees=block.start,
                span=0,
                noisy=True,
                masked=tuple(p in hidden for p in positions),
            )
        )
        for p in block.hidden:
            after = len(reads) - 1 if p - 1 in hidden else -1
            reads.append(Read(row + p - shift - block.start, p, "draft", (tokens[p],), (), CHOICES, after))
        row, slot = row + len(positions), slot + len(positions)
    readings = iter(engine.read(Pass(tuple(segments), tuple(reads))))
    return [
        [
            Guess(
                p,
                p - block.start,
                reading.token,
                reading.logprob,
                reading.target_logprobs[0],
                reading.given,
            )
            for p, reading in ((p, next(readings)) for p in block.hidden)
        ]
        for block in cut
    ]
