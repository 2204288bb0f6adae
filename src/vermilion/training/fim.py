"""Gaps in texts: prefix and suffix first, then the middle that is to be written (arXiv 2207.14255)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from vermilion.training.corpus import Document


def rearranged(
    ids: Sequence[int], marks: tuple[int, int, int, int], breaks: Collection[int], rng: np.random.Generator
) -> Document:
    """PRE prefix SUF suffix MID middle END; only the middle and its END are trained on.

    `marks` are PRE, SUF, MID, END. Half of the gaps begin and end where a line does, behind a token of
    `breaks`; the others begin and end anywhere. The middle has at least one token.
    """
    pre, suf, mid, end = marks
    cuts = np.arange(len(ids) + 1)
    if rng.random() < 0.5:
        lines = [0, *(i + 1 for i, token in enumerate(ids) if token in breaks), len(ids)]
        cuts = np.unique(lines)
    first, last = sorted(int(cut) for cut in rng.choice(cuts, 2, replace=False))
    given = [pre, *ids[:first], suf, *ids[last:], mid]
    return Document([*given, *ids[first:last], end], len(given))
