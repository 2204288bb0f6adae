"""Infill for models without a base: a canvas between the prompt and the suffix, whose length they choose.

Canvases of growing lengths are each denoised once; the one whose masks are filled most surely, on average,
is then denoised on. A fully bidirectional model sees the whole suffix; a block-causal one sees its head, in
the canvas's own block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vermilion.decoding.decoders import settle
from vermilion.decoding.drafting import DraftBudget
from vermilion.decoding.passes import Pass, Read, Reading, Segment
from vermilion.decoding.program import Open, Program, Task
from vermilion.models.families import Traits

HEAD = 16
"""Suffix tokens in sight of a block-causal model's canvas."""
MAX_LENGTH = 256
"""Longest middle that is looked for: what a search costs grows with the square of it."""
_ROWS = 96
"""Rows of one pass up to which further canvases are tried in it."""


def repeats(middle: Sequence[int], suffix: Sequence[int]) -> int:
    """By how many tokens the middle ends as the suffix begins; one counts only if the suffix is one."""
    longest, shortest = min(len(middle), len(suffix)), min(2, len(suffix))
    sizes = range(longest, shortest - 1, -1)
    return next((size for size in sizes if tuple(middle[-size:]) == tuple(suffix[:size])), 0)


def lengths(most: int) -> list[int]:
    """Canvas lengths to try: powers of two up to `most`, at most `MAX_LENGTH`, and that itself."""
    most = min(most, MAX_LENGTH)
    return [2**i for i in range(most.bit_length()) if 2**i < most] + [most]


def canvas_start(traits: Traits, known: int) -> int:
    """Where a canvas behind `known` tokens begins: with a whole sequence, or with a block that holds at
    least one of them, since with a shift the first mask is read from the row before it."""
    grid = traits.block_grid or 1
    return 0 if traits.context == "full" else (known - 1) // grid * grid


def surest(tried: Sequence[Sequence[Reading]]) -> int:
    """Which canvas has the highest mean log-probability; the shortest of equals."""
    means = [sum(reading.logprob for reading in readings) / len(readings) for readings in tried]
    return max(range(len(means)), key=lambda i: (means[i], -i))


def trimmed(middle: Sequence[int], suffix: Sequence[int], ends: frozenset[int]) -> tuple[int, ...]:
    """The middle up to an end of text, without a tail that the suffix repeats."""
    stop = next((i for i, token in enumerate(middle) if token in ends), len(middle))
    kept = tuple(middle[:stop])
    while kept and (overlap := repeats(kept, suffix)):
        kept = kept[:-overlap]
    return kept


@dataclass(slots=True)
class _Choice:
    """The canvas that is being filled."""

    ids: list[int | None]
    readings: list[Reading]
    steps: int = 0

    def masked(self) -> list[int]:
        return [i for i, token in enumerate(self.ids) if token is None]


class Between(Program):
    """Decoders `threshold`, `schedule`, `entropy` and `cumulative` on `full` and `block` models."""

    def __init__(self, task: Task, traits: Traits) -> None:
        super().__init__(task, traits)
        self._start = canvas_start(traits, len(task.prompt))
        self._head = task.suffix if traits.context == "full" else task.suffix[:HEAD]
        self._untried = lengths(task.max_tokens)
        self._tried: list[list[Reading]] = []
        self._asked: list[int] = []
        self._choice: _Choice | None = None

    @property
    def max_slots(self) -> int:
        fixed = len(self.tokens) - self._start + len(self._head)
        return self._start + max(_ROWS, fixed + lengths(self.task.max_tokens)[-1])

    @property
    def cacheable(self) -> int:
        return self._start

    def plan(self, budget: DraftBudget | None = None) -> Pass:
        segments: list[Segment] = []
        reads: list[Read] = []
        if self.cached < self._start:
            segments.append(self._clean(self.tokens, self._start))
        middles: list[list[int | None]]
        if self._choice is None:
            self._asked = self._next_lengths()
            middles = [[None] * length for length in self._asked]
        else:
            middles = [self._choice.ids]
        slot = self._start
        for middle in middles:
            segment = self._segment(middle, slot)
            row = sum(len(earlier.ids) for earlier in segments) + len(self.tokens) - self._start
            row -= int(self.traits.shift)
            segments.append(segment)
            slot += len(segment.ids)
            history = tuple(token for token in middle if token is not None)
            reads += [
                Read(row + i, len(self.tokens) + i, "mask", (), history)
                for i, token in enumerate(middle)
                if token is None
            ]
        return Pass(tuple(segments), tuple(reads))

    def _next_lengths(self) -> list[int]:
        fixed = len(self.tokens) - self._start + len(self._head)
        chosen = self._untried[:1]
        for length in self._untried[1:]:
            if sum(chosen) + length + fixed * (len(chosen) + 1) > _ROWS:
                break
            chosen.append(length)
        return chosen

    def _segment(self, middle: Sequence[int | None], slot: int) -> Segment:
        mask, fixed = self.traits.mask_token_id, self.tokens[self._start :]
        return Segment(
            ids=(*fixed, *(mask if token is None else token for token in middle), *self._head),
            start=self._start,
            slot=slot,
            sees=self._start,
            span=0,
            noisy=True,
            masked=(
                *([False] * len(fixed)),
                *(token is None for token in middle),
                *([False] * len(self._head)),
            ),
        )

    def apply(self, readings: Sequence[Reading]) -> None:
        self._count_pass()
        self.cached = self._start
        if self._choice is None:
            parts = iter(readings)
            self._tried += [[next(parts) for _ in range(length)] for length in self._asked]
            self._untried = self._untried[len(self._asked) :]
            if self._untried:
                return
            best = self._tried[surest(self._tried)]
            self._choice = _Choice([None] * len(best), best)
            readings = best
        choice, decoding = self._choice, self.task.decoding
        masked = choice.masked()
        for i, reading in zip(masked, readings, strict=True):
            choice.readings[i] = reading
        cap = decoding.max_steps or len(choice.ids)
        for index in settle(decoding, readings, None, cap - choice.steps):
            choice.ids[masked[index]] = readings[index].token
        choice.steps += 1
        if not choice.masked():
            self._end(choice)

    def _end(self, choice: _Choice) -> None:
        middle = [token for token in choice.ids if token is not None]
        ends = self.task.eos | {self.traits.mask_token_id}
        for i, token in enumerate(trimmed(middle, self.task.suffix, ends)):
            self._settle(choice.readings[i], token)
        self.finish = "stop"

    def canvas(self) -> list[Open]:
        if self._choice is None or self.finish is not None:
            return []
        pairs = zip(self._choice.ids, self._choice.readings, strict=True)
        return [Open(r.token if t is None else t, masked=t is None) for t, r in pairs]
