"""Which program runs a decoder on a kind of model."""

from __future__ import annotations

from dataclasses import replace

from vermilion.decoding.anchored_blocks import AnchoredBlocks
from vermilion.decoding.blocks import Blocks
from vermilion.decoding.decoders import DECODERS
from vermilion.decoding.filling import GapFilling
from vermilion.decoding.given import Given
from vermilion.decoding.grammar import Constraint
from vermilion.decoding.left_edge import edge_decoding
from vermilion.decoding.program import Program, Task
from vermilion.decoding.renoising import Renoising
from vermilion.decoding.reordering import Reordering
from vermilion.decoding.speculative import Speculative
from vermilion.models.families import Traits
from vermilion.models.families.family_presets import WITH_BASE

_PROGRAMS: dict[str, type[Program]] = {
    "speculative": Speculative,
    "blocks": Blocks,
    "filling": GapFilling,
    "renoising": Renoising,
    "reordering": Reordering,
}
"""By `Decoder.program`."""


def program_of(task: Task, traits: Traits) -> Program:
    """The program of an answer from left to right, by its task's decoder."""
    if task.given:
        return Given(task, traits)
    kind = _PROGRAMS[DECODERS[task.decoding.decoder].program]
    if kind is not Speculative:
        traits = traits.for_canvases()
    if kind is Blocks and traits.next_token:
        kind = AnchoredBlocks
    return kind(task, traits)


def constrained(task: Task, constraint: Constraint, traits: Traits) -> Program:
    """A grammar decides from left to right, as verified drafting does; other decoders fall back to it where
    there is a base, and else settle a canvas from its left edge."""
    decoding = task.decoding
    if not traits.has_next_token:
        return program_of(replace(task, decoding=edge_decoding(decoding), constraint=constraint), traits)
    if not DECODERS[decoding.decoder].needs_base:
        decoding = WITH_BASE["lossless"]
    return Speculative(replace(task, decoding=decoding, constraint=constraint), traits)
