"""A canvas of which some is given: its open places are read once, or denoised until none is open.

The given tokens to the right count as much as those to the left, so this is for places whose number is
known: the answers of a form, holes of a fixed size. Nothing of the canvas is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vermilion.decoding.between import canvas_start
from vermilion.decoding.decoders import DECODERS, settle
from vermilion.decoding.drafting import DraftBudget
from vermilion.decoding.passes import Pass, Read, Reading, Segment
from vermilion.decoding.program import Open, Program, Task
from vermilion.models.families import Traits
from vermilion.types import Decoding, Seeds


def filling(decoding: Decoding) -> Decoding:
    """How open places are filled: `ar` one a pass, other decoders that need a base by confidence."""
    if decoding.decoder == "ar":
        return replace(decoding, decoder="cumulative", threshold=1.0, max_steps=0)
    return replace(decoding, decoder="threshold") if DECODERS[decoding.decoder].needs_base else decoding


def likeliest(candidates: Sequence[int], reading: Reading) -> Reading:
    """`reading` as a choice among `candidates`, with the log-probability of each in their order as `top`.

    They are the model's own, over its whole vocabulary: what they leave out says how little it thought of
    any of them.
    """
    logprobs = reading.target_logprobs
    best = max(range(len(candidates)), key=lambda i: (logprobs[i], -i))
    return replace(
        reading,
        token=candidates[best],
        logprob=logprobs[best],
        top=tuple(zip(candidates, logprobs, strict=True)),
    )


class Seeded(Program):
    """Answers with the tokens of the open places alone, in order."""

    def __init__(self, task: Task, traits: Traits) -> None:
        assert task.seeds is not None
        super().__init__(task, traits)
        self._seeds: Seeds = task.seeds
        self._ids = list(task.seeds.ids)
        self._open = [i for i, token in enumerate(self._ids) if token is None]
        self._readings: dict[int, Reading] = {}
        self._steps = 0
        self._start = len(task.prompt)
        if traits.context != "causal":
            self._start = canvas_start(traits, len(task.prompt))
        elif self._ids[0] is None:
            # The token before it is its anchor: the row that predicts it.
            self._start -= 1

    @property
    def max_slots(self) -> int:
        return len(self.task.prompt) + len(self._ids)

    @property
    def cacheable(self) -> int:
        return min(self._start, len(self.task.prompt) - 1)

    def plan(self, budget: DraftBudget | None = None) -> Pass:
        prompt, mask, start = self.task.prompt, self.traits.mask_token_id, self._start
        segments = [self._clean(prompt, start)] if self.cached < start else []
        fixed = prompt[start:]
        canvas = Segment(
            ids=(*fixed, *(mask if token is None else token for token in self._ids)),
            start=start,
            slot=start,
            sees=start,
            span=0,
            noisy=True,
            masked=(*([False] * len(fixed)), *(token is None for token in self._ids)),
        )
        row = sum(len(segment.ids) for segment in segments) + len(fixed) - int(self.traits.shift)
        wanted = zip(self._open, self._seeds.candidates or [()] * len(self._open), strict=False)
        history = tuple(token for token in self._ids if token is not None)
        reads = [
            Read(row + i, len(prompt) + i, "mask", targets, () if targets else history)
            for i, targets in wanted
            if self._ids[i] is None
        ]
        return Pass((*segments, canvas), tuple(reads))

    def apply(self, readings: Sequence[Reading]) -> None:
        self._count_pass()
        self.cached = self._start
        masked = [i for i in self._open if self._ids[i] is None]
        if self._seeds.candidates:
            for i, candidates, reading in zip(masked, self._seeds.candidates, readings, strict=True):
                self._readings[i] = likeliest(candidates, reading)
                self._ids[i] = self._readings[i].token
        else:
            decoding = filling(self.task.decoding)
            cap = decoding.max_steps or len(self._open)
            self._readings |= dict(zip(masked, readings, strict=True))
            for index in settle(decoding, readings, None, cap - self._steps):
                self._ids[masked[index]] = readings[index].token
        self._steps += 1
        if all(token is not None for token in self._ids):
            for i in self._open:
                self._settle(self._readings[i])
            self.finish = "stop"

    def canvas(self) -> list[Open]:
        """The whole canvas, given tokens included, once it has been read."""
        if self.finish is not None or not self._readings:
            return []
        return [
            Open(self._readings[i].token if token is None else token, masked=token is None)
            for i, token in enumerate(self._ids)
        ]
