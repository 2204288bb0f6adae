"""What goes down to the worker for one request: rows to run, and what is wanted of which."""

from __future__ import annotations

from collections.abc import Sequence

from vermilion.decoding.passes import Pass
from vermilion.decoding.penalties import Adjustments
from vermilion.frozen import frozen
from vermilion.types import Sampling


@frozen
class Wanted:
    """What is asked of one row of logits."""

    sampling: Sampling
    position: int
    targets: Sequence[int] = ()
    adjustments: Adjustments | None = None
    entropy: bool = False
    top: int = 0
    """How many of the likeliest tokens to list."""
    allowed: bytes = b""
    """The tokens that may be chosen, as bits over the vocabulary, lowest first; empty for all."""
    divisor: float = 1.0
    draw: int = -1
    divergence: bool = False
    may_mask: bool = False
    """As of the `Read`."""


@frozen
class Job:
    """One request's part of a forward. `pages` hold its logical slots in order; `wanted` goes with
    `rows.reads`, one each."""

    pages: Sequence[int]
    rows: Pass
    wanted: Sequence[Wanted]
    adapter: str = ""
    """The adapter all of its rows go through, as the worker knows it; empty for none."""
    request: str = ""
    """What the worker keeps on the device is kept under this name until it is released; nothing if empty."""
