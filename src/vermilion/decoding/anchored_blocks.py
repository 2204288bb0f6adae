"""Blocks of a model with two opinions: clean rows predict the next token, masks predict themselves.

A pass over the last block's clean rows stores their causal keys and gives the token behind them. That token,
in sight of masks and they in its, anchors the next block, which stands still until it is full
(Nemotron-Labs-Diffusion's sampler). So a block costs a pass of its own for its first token, and no pass of
masks has to do without it.
"""

from __future__ import annotations

from collections.abc import Sequence

from vermilion.decoding.canvas import MaskedCanvas
from vermilion.decoding.drafting import DraftBudget
from vermilion.decoding.passes import Pass, Read, Reading
from vermilion.decoding.program import Open, Program, Task
from vermilion.decoding.repetition import RepetitionWatch
from vermilion.models.families import Traits


class AnchoredBlocks(Program):
    """Decoders with a rule for canvases, on models whose masks and clean rows predict different positions."""

    def __init__(self, task: Task, traits: Traits) -> None:
        super().__init__(task, traits)
        self._watch = RepetitionWatch() if task.stop_repetition else None
        self._canvas: MaskedCanvas | None = None

    @property
    def max_slots(self) -> int:
        return self.limit

    @property
    def cacheable(self) -> int:
        return (self._canvas.start if self._canvas else len(self.tokens)) - 1

    def plan(self, budget: DraftBudget | None = None) -> Pass:
        canvas = self._canvas
        if canvas is None:
            stop = len(self.tokens)
            read = Read(stop - 1 - self.cached, stop, "next")
            return Pass((self._clean(self.tokens, stop),), (read,))
        anchor = canvas.start - 1
        clean = (self._clean(self.tokens, anchor),) if self.cached < anchor else ()
        noisy = canvas.rows(self.traits, self.tokens[anchor : canvas.start], anchor)
        row = sum(len(segment.ids) for segment in clean) + 1
        history = tuple(token for token in canvas.ids[len(self.tokens) - canvas.start :] if token is not None)
        reads = canvas.reads(row, self.traits, history, self.task.decoding, len(canvas.ids))
        return Pass((*clean, noisy), tuple(reads))

    def apply(self, readings: Sequence[Reading]) -> None:
        self._count_pass()
        canvas = self._canvas
        if canvas is None:
            self.cached = len(self.tokens)
            self._settle(readings[0])
            opened = self.task.decoding.canvas_length(len(self.tokens) - len(self.task.prompt)) - 1
            length = min(opened, self.limit - len(self.tokens))
            if self.finish is None and length > 0:
                self._canvas = MaskedCanvas(len(self.tokens), [None] * length)
            return
        self.cached = canvas.start - 1
        canvas.fill(self.task, self.traits, readings, len(canvas.ids))
        ends = (i + 1 for i, token in enumerate(canvas.ids[: canvas.end]) if token in self.task.eos)
        canvas.end = next(ends, canvas.end)
        for i in range(len(self.tokens) - canvas.start, canvas.end):
            token = canvas.ids[i]
            if token is None:
                return
            self._settle(canvas.readings[i], token)
            if self.finish is not None:
                return
        self._canvas = None

    def canvas(self) -> list[Open]:
        return self._canvas.view(len(self.tokens) - self._canvas.start) if self._canvas else []
