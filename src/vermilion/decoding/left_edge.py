"""Grammars on canvases: text settles from the left edge alone, each token legal behind those before it.

The first open position is read among the tokens that the grammar allows behind the settled text, a further
one among those that it allows behind what the last pass found before it, as far as that is legal. A pass
settles what its decoder would, up to the first position that it leaves open or whose token may not follow the
others: one position at least. So nothing that is settled depends on a guess, and where two passes in a row
find the same text all of it is legal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from vermilion.decoding.decoders import DECODERS
from vermilion.decoding.grammar import Constraint
from vermilion.decoding.passes import Read, Reading
from vermilion.types import Decoding


def edge_decoding(decoding: Decoding) -> Decoding:
    """Decoders that take tokens back, look at earlier passes or find a length go by confidence; passes are
    whole."""
    decoder = DECODERS[decoding.decoder]
    plain = decoder.program in ("renoising", "reordering") or (decoder.rule and not decoder.keeps_past)
    return replace(decoding, cache="none", decoder=decoding.decoder if plain else "threshold")


def held(reads: Sequence[Read], guesses: Sequence[int], start: int, constraint: Constraint) -> list[Read]:
    """The reads of a canvas, those that the grammar says something of with the tokens before them.

    `guesses`: what the last pass found from the first open position, `start`, on; -1 where it said nothing.
    """
    forced = constraint.forced_run
    path = [*forced, *takewhile(lambda token: token >= 0, guesses[len(forced) :])]
    known = constraint.kept(path)
    return [
        replace(read, path=tuple(path[: read.position - start])) if read.position - start <= known else read
        for read in reads
    ]


def edge(
    chosen: Mapping[int, Reading], readings: Sequence[Reading], constraint: Constraint
) -> dict[int, Reading]:
    """Of a step's `readings`, from the first open position on, which settle: the `chosen` ones that stand in
    unbroken order at the left and may follow each other, the first in any case."""
    legal = constraint.kept([reading.token for reading in readings])
    stands = list(takewhile(lambda i: i == 0 or i in chosen, range(legal)))
    return {i: readings[i] for i in stands}
