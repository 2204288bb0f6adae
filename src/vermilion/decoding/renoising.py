"""Uniform-noise diffusion: a canvas of random tokens whose every position is decided anew in every pass.

A pass reads the whole canvas at a temperature that falls with the steps. The positions whose predictions
depend least on each other (an entropy bound) take a drawn token, all others fresh noise; nothing is final
before the canvas is. It is done when its likeliest tokens stand still and are sure, or after `max_steps`
passes, and these tokens are the text. They then ride as clean rows, which store causal keys and values, in
the first pass of the next canvas. The published sampler of DiffusionGemma; the bound is EB-sampler's
(arXiv 2505.24857).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vermilion.decoding.drafting import DraftBudget
from vermilion.decoding.left_edge import edge, held
from vermilion.decoding.noise import uniform_token
from vermilion.decoding.passes import Pass, Read, Reading, Segment
from vermilion.decoding.program import Open, Program, Task
from vermilion.decoding.repetition import RepetitionWatch
from vermilion.decoding.rules import least_dependent
from vermilion.models.families import Traits
from vermilion.types import Decoding


@dataclass(slots=True)
class NoisyCanvas:
    """Positions [start, start + len(ids)) of random and accepted tokens."""

    start: int
    ids: list[int]
    step: int = 0
    """Passes that have read it."""
    accepted: frozenset[int] = frozenset()
    likeliest: list[tuple[int, ...]] = field(default_factory=list)
    """The likeliest tokens by step."""
    readings: tuple[Reading, ...] = ()
    """Of the likeliest tokens, by the last step."""


class Renoising(Program):
    """Decoder `renoise`."""

    def __init__(self, task: Task, traits: Traits) -> None:
        super().__init__(task, traits)
        self._watch = RepetitionWatch() if task.stop_repetition else None
        self._canvas: NoisyCanvas | None = None

    @property
    def max_slots(self) -> int:
        return self.limit

    @property
    def cacheable(self) -> int:
        return len(self.tokens)

    def forget(self) -> None:
        """What the worker kept of the canvas is gone as well: it begins again, to the same end."""
        super().forget()
        self._canvas = None

    def plan(self, budget: DraftBudget | None = None) -> Pass:
        start = len(self.tokens)
        if self._canvas is None:
            length = min(self.task.decoding.canvas_length(start - len(self.task.prompt)), self.limit - start)
            self._canvas = NoisyCanvas(start, [self._noise(start + i, 0) for i in range(length)])
        canvas = self._canvas
        clean = (self._clean(self.tokens, start),) if self.cached < start else ()
        noisy = Segment(
            tuple(canvas.ids), start, start, sees=start, span=0, noisy=True, conditioned=canvas.step > 0
        )
        first = start - self.cached
        divisor = temperature(self.task.decoding, canvas.step)
        reads = [
            Read(first + i, start + i, "canvas", top=1, divisor=divisor, draw=canvas.step)
            for i in range(len(canvas.ids))
        ]
        if self.task.constraint is not None:
            guesses = canvas.likeliest[-1] if canvas.likeliest else ()
            reads = held(reads, guesses, start, self.task.constraint)
        return Pass((*clean, noisy), tuple(reads))

    def _noise(self, position: int, draw: int) -> int:
        return uniform_token(self.task.seed, position, draw, self.task.vocab_size)

    def apply(self, readings: Sequence[Reading]) -> None:
        self._count_pass()
        canvas, decoding = self._canvas, self.task.decoding
        assert canvas is not None
        self.cached = canvas.start
        entropies = [reading.entropy for reading in readings]
        canvas.accepted = frozenset(least_dependent(entropies, decoding.threshold))
        canvas.step += 1
        canvas.ids = [
            reading.token if i in canvas.accepted else self._noise(canvas.start + i, canvas.step)
            for i, reading in enumerate(readings)
        ]
        canvas.readings = tuple(_likeliest(reading) for reading in readings)
        canvas.likeliest.append(tuple(reading.token for reading in canvas.readings))
        if canvas.step >= steps(decoding) or stands_still(decoding, canvas.likeliest, entropies):
            self._canvas = None
            settled = dict(enumerate(canvas.readings))
            if self.task.constraint is not None:
                settled = edge(settled, canvas.readings, self.task.constraint)
            for reading in settled.values():
                self._settle(reading)
                if self.finish is not None:
                    return

    def canvas(self) -> list[Open]:
        if self._canvas is None:
            return []
        accepted, readings = self._canvas.accepted, self._canvas.readings
        return [Open(reading.token, masked=i not in accepted) for i, reading in enumerate(readings)]


def steps(decoding: Decoding) -> int:
    """Most passes that one canvas is read in."""
    return decoding.max_steps or decoding.block_length


def temperature(decoding: Decoding, step: int) -> float:
    """What the logits of the canvas's `step`-th pass, from 0, are divided by: `max_temperature` at first,
    down to a step above `min_temperature`."""
    least, most = decoding.min_temperature, decoding.max_temperature
    return least + (most - least) * (steps(decoding) - step) / steps(decoding)


def stands_still(
    decoding: Decoding, likeliest: Sequence[tuple[int, ...]], entropies: Sequence[float]
) -> bool:
    """Whether the last `stable_steps` + 1 steps found the same tokens likeliest, and are sure of them."""
    unchanged = likeliest[-1 - decoding.stable_steps :]
    stable = len(unchanged) == decoding.stable_steps + 1 and len(set(unchanged)) == 1
    return stable and sum(entropies) / len(entropies) < decoding.stop_entropy


def _likeliest(reading: Reading) -> Reading:
    (token, logprob), *_ = reading.top
    return replace(reading, token=token, logprob=logprob)
