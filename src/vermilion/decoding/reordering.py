"""WeDLM: masks in ordinary causal attention, by putting what is settled before them (arXiv 2512.22737).

Behind the text stands a window of positions, some filled. In memory the filled ones come first, the masks
behind them, each at its own position: masks see all that is known, what is known never sees a mask. So keys
and values of a filled position are final as soon as all before it are filled, nothing is computed again to be
stored, and a prefix is shared token by token.
"""

from __future__ import annotations

from collections.abc import Sequence

from vermilion.decoding.drafting import DraftBudget
from vermilion.decoding.left_edge import edge, held
from vermilion.decoding.passes import Pass, Read, Reading, Segment
from vermilion.decoding.program import Open, Program, Task
from vermilion.decoding.repetition import RepetitionWatch
from vermilion.decoding.rules import near_and_sure
from vermilion.models.families import Traits


class Reordering(Program):
    """Decoder `reorder`."""

    def __init__(self, task: Task, traits: Traits) -> None:
        super().__init__(task, traits)
        self._watch = RepetitionWatch() if task.stop_repetition else None
        self._filled: dict[int, Reading] = {}
        """Positions of the window that are filled behind an open one."""
        self._guesses: dict[int, int] = {}

    @property
    def max_slots(self) -> int:
        return self.limit

    @property
    def cacheable(self) -> int:
        return len(self.tokens)

    def plan(self, budget: DraftBudget | None = None) -> Pass:
        clean = (self._clean(self.tokens, len(self.tokens)),) if self.cached < len(self.tokens) else ()
        slot, row = len(self.tokens), len(self.tokens) - self.cached
        segments: list[Segment] = []
        for position, reading in sorted(self._filled.items()):
            segments.append(Segment((reading.token,), position, slot, slot, span=1, noisy=True))
            slot += 1
        row += len(segments)
        reads: list[Read] = []
        history = tuple(reading.token for _, reading in sorted(self._filled.items()))
        for position in self._masks():
            mask = (self.traits.mask_token_id,)
            segments.append(Segment(mask, position, slot, slot, span=1, noisy=True, masked=(True,)))
            reads.append(Read(row, position, "mask", history=history))
            slot, row = slot + 1, row + 1
        if self.task.constraint is not None:
            known = len(self.tokens)
            guesses = [self._guesses.get(known + i, -1) for i in range(len(reads))]
            reads = held(reads, guesses, known, self.task.constraint)
        return Pass((*clean, *segments), tuple(reads))

    def _masks(self) -> list[int]:
        start = len(self.tokens)
        end = min(start + self.task.decoding.block_length, self.limit)
        return [position for position in range(start, end) if position not in self._filled]

    def apply(self, readings: Sequence[Reading]) -> None:
        self._count_pass()
        self.cached = len(self.tokens)
        masks, decoding = self._masks(), self.task.decoding
        self._guesses = {position: reading.token for position, reading in zip(masks, readings, strict=True)}
        distances = [position - masks[0] for position in masks]
        entropies = [reading.entropy for reading in readings]
        sure = near_and_sure(entropies, distances, decoding.threshold, decoding.distance_penalty)
        chosen = {i: readings[i] for i in sure}
        if self.task.constraint is not None:
            chosen = edge(chosen, readings, self.task.constraint)
        self._filled |= {masks[i]: reading for i, reading in chosen.items()}
        while self.finish is None and len(self.tokens) in self._filled:
            self._settle(self._filled.pop(len(self.tokens)))

    def canvas(self) -> list[Open]:
        places = sorted({*self._filled, *self._guesses})
        return [
            Open(self._filled[at].token, masked=False)
            if at in self._filled
            else Open(self._guesses[at], masked=True)
            for at in places
            if at >= len(self.tokens)
        ]
