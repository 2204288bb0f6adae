"""Which rows a pass of a fully bidirectional model runs: all of them, or fewer where a cache is asked for.

Everything sees everything there, so keys and values that a pass has stored are those of an earlier text as
soon as a position settles. A cache reads them all the same and recomputes only a window: an approximation,
which a request must ask for. A pass that runs all rows is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vermilion.types import Decoding

CACHES: Mapping[str, str] = MappingProxyType(
    {
        "none": "every pass runs the whole text: exact",
        "prefix": "what is before the block is computed when the block opens (Fast-dLLM, arXiv 2505.22618)",
        "dual": "what is before the block and behind it is computed when it opens (the same)",
        "vicinity": "the same, but `cache_window` positions on both sides of the block are computed in every "
        "pass (dInfer, arXiv 2510.08666)",
    }
)

CACHE_SETTINGS = ("cache_window", "refresh_every", "warm_steps")


def runs_all(decoding: Decoding, step: int) -> bool:
    """Whether the `step`-th pass of a block, counted from 0, runs all rows."""
    if decoding.cache == "none" or step == 0:
        return True
    warming = decoding.cache == "vicinity" and step < decoding.warm_steps
    return warming or (bool(decoding.refresh_every) and step % decoding.refresh_every == 0)


def window(decoding: Decoding, block: range, length: int, shift: bool) -> range:
    """Positions that a pass runs with the cache of a text of `length`. With a shift the row before the block
    is among them, since the block's first position is read from it."""
    begin, end = block.start - int(shift), block.stop
    if decoding.cache == "prefix":
        end = length
    if decoding.cache == "vicinity":
        begin, end = block.start - max(decoding.cache_window, int(shift)), end + decoding.cache_window
    return range(max(0, begin), min(length, end))
