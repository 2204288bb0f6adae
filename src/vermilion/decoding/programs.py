"""Which program runs a decoder on a kind of model."""

from __future__ import annotations

from vermilion.decoding.anchored_blocks import AnchoredBlocks
from vermilion.decoding.blocks import Blocks
from vermilion.decoding.decoders import DECODERS
from vermilion.decoding.program import Program, Task
from vermilion.decoding.renoising import Renoising
from vermilion.decoding.reordering import Reordering
from vermilion.decoding.speculative import Speculative
from vermilion.models.families import Traits

_PROGRAMS: dict[str, type[Program]] = {
    "speculative": Speculative,
    "blocks": Blocks,
    "renoising": Renoising,
    "reordering": Reordering,
}
"""By `Decoder.program`."""


def program_of(task: Task, traits: Traits) -> Program:
    """The program of an answer from left to right, by its task's decoder."""
    kind = _PROGRAMS[DECODERS[task.decoding.decoder].program]
    if kind is not Speculative:
        traits = traits.for_canvases()
    if kind is Blocks and traits.next_token:
        kind = AnchoredBlocks
    return kind(task, traits)
