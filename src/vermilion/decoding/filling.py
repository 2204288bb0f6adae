"""One canvas between fixed text: a gap whose length is looked for, or places that are open in a given text.

A gap, for models without a base: canvases of growing lengths are each denoised once; the one whose masks are
filled most surely, on average, is then denoised on. A fully bidirectional model sees the whole suffix; a
block-causal one sees its head, in the canvas's own block.

Seeds, for all models: the given tokens to the right count as much as those to the left. With candidates one
pass reads how likely each is; without, the places are denoised until none is open. Nothing of a canvas is
stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vermilion.decoding.canvas import MaskedCanvas
from vermilion.decoding.decoders import DECODERS
from vermilion.decoding.drafting import DraftBudget
from vermilion.decoding.passes import Pass, Read, Reading, Segment
from vermilion.decoding.program import Open, Program, Task
from vermilion.models.families import Traits
from vermilion.types import Decoding

SUFFIX_HEAD = 16
"""Suffix tokens in sight of a block-causal model's canvas."""
MAX_LENGTH = 256
"""Longest middle that is looked for: what a search costs grows with the square of it."""
_SEARCH_ROWS = 96
"""Rows of one pass up to which further canvases are tried in it."""


def overlap(middle: Sequence[int], suffix: Sequence[int]) -> int:
    """By how many tokens the middle ends as the suffix begins; one counts only if the suffix is one."""
    longest, shortest = min(len(middle), len(suffix)), min(2, len(suffix))
    sizes = range(longest, shortest - 1, -1)
    return next((size for size in sizes if tuple(middle[-size:]) == tuple(suffix[:size])), 0)


def lengths(max_tokens: int) -> list[int]:
    """Canvas lengths to try: powers of two up to `max_tokens`, at most `MAX_LENGTH`, and that itself."""
    longest = min(max_tokens, MAX_LENGTH)
    return [2**i for i in range(longest.bit_length()) if 2**i < longest] + [longest]


def first_row(traits: Traits, known: int, begins_open: bool = True) -> int:
    """Position of the first noisy row of a canvas behind `known` tokens: with a whole sequence, with a block
    that holds at least one of them (since with a shift the first mask is read from the row before it), or,
    where a canvas may begin anywhere, at the token that anchors a masked first position."""
    if traits.context == "causal":
        return known - int(begins_open)
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
    while kept and (repeated := overlap(kept, suffix)):
        kept = kept[:-repeated]
    return kept


def filling_decoding(decoding: Decoding) -> Decoding:
    """How open places are filled: `ar` one a pass, other decoders that need a base by confidence; their
    number stays."""
    decoding = replace(decoding, sub_block=0)
    if decoding.decoder == "ar":
        return replace(decoding, decoder="cumulative", threshold=1.0, max_steps=0)
    if DECODERS[decoding.decoder].needs:
        return replace(decoding, decoder="joint")
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


class GapFilling(Program):
    """Decoders with a rule for canvases, and the others by way of `filling_decoding`."""

    def __init__(self, task: Task, traits: Traits) -> None:
        super().__init__(replace(task, decoding=filling_decoding(task.decoding)), traits)
        seeds, known = task.seeds, len(task.prompt)
        self._candidates = seeds.candidates if seeds is not None else ()
        if seeds is not None:
            self._untried = [MaskedCanvas(known, list(seeds.ids))]
        else:
            head = task.suffix if traits.context == "full" else task.suffix[:SUFFIX_HEAD]
            self._untried = [
                MaskedCanvas(known, [None] * size, right=head) for size in lengths(task.max_tokens)
            ]
        self._begin = first_row(traits, known, self._untried[0].ids[0] is None)
        rows = [self._num_rows(canvas) for canvas in self._untried]
        self._max_rows = max(rows) if len(rows) == 1 else max(_SEARCH_ROWS, *rows)
        self._open = self._untried[0].masked()
        self._tried: list[MaskedCanvas] = []
        self._asked: list[MaskedCanvas] = []
        self._canvas: MaskedCanvas | None = None

    def _num_rows(self, canvas: MaskedCanvas) -> int:
        return canvas.start - self._begin + len(canvas.ids) + len(canvas.right)

    @property
    def max_slots(self) -> int:
        return self._begin + self._max_rows

    @property
    def cacheable(self) -> int:
        return min(self._begin, len(self.task.prompt) - 1)

    def plan(self, budget: DraftBudget | None = None) -> Pass:
        segments: list[Segment] = []
        reads: list[Read] = []
        if self.cached < self._begin:
            segments.append(self._clean(self.tokens, self._begin))
        self._asked = self._next_tries() if self._canvas is None else [self._canvas]
        slot, left = self._begin, self.tokens[self._begin :]
        for canvas in self._asked:
            row = sum(len(earlier.ids) for earlier in segments) + len(left)
            segments.append(canvas.rows(self.traits, left, slot))
            slot += len(segments[-1].ids)
            history = () if self._candidates else canvas.filled()
            reads += canvas.reads(row, self.traits.shift, history, self.task.decoding, self._cap(canvas))
        if self._candidates:
            pairs = zip(reads, self._candidates, strict=True)
            reads = [replace(read, targets=targets) for read, targets in pairs]
        return Pass(tuple(segments), tuple(reads))

    def _next_tries(self) -> list[MaskedCanvas]:
        """As many canvases as fit a pass, at least one."""
        chosen = self._untried[:1]
        for canvas in self._untried[1:]:
            if sum(map(self._num_rows, [*chosen, canvas])) > _SEARCH_ROWS:
                break
            chosen.append(canvas)
        return chosen

    def apply(self, readings: Sequence[Reading]) -> None:
        self._count_pass()
        self.cached = self._begin
        if self._canvas is None:
            parts = iter(readings)
            for canvas in self._asked:
                for i in canvas.masked():
                    canvas.readings[i] = next(parts)
            self._tried += self._asked
            self._untried = self._untried[len(self._asked) :]
            if self._untried:
                return
            looks = [[canvas.readings[i] for i in canvas.masked()] for canvas in self._tried]
            best = surest(looks)
            self._canvas, self._open = self._tried[best], self._tried[best].masked()
            readings = looks[best]
        canvas = self._canvas
        if self._candidates:
            for i, candidates, reading in zip(self._open, self._candidates, readings, strict=True):
                canvas.readings[i] = likeliest(candidates, reading)
                canvas.ids[i] = canvas.readings[i].token
        else:
            canvas.fill(self.task, self.traits, readings, self._cap(canvas))
        if canvas.done or not (canvas.masked() or DECODERS[self.task.decoding.decoder].edit):
            self._end(canvas)

    def _cap(self, canvas: MaskedCanvas) -> int:
        return canvas.given.count(None)

    def forget(self) -> None:
        super().forget()
        if self._canvas is not None and DECODERS[self.task.decoding.decoder].keeps_past:
            self._canvas = self._canvas.reopened()

    def _end(self, canvas: MaskedCanvas) -> None:
        """Answer with the tokens of the open places, in order."""
        self.edits += canvas.edits
        answer = [(canvas.ids[i] or 0, canvas.readings[i]) for i in self._open]
        if self.task.seeds is None:
            ends = self.task.eos | {self.traits.mask_token_id}
            answer = answer[: len(trimmed([token for token, _ in answer], self.task.suffix, ends))]
        for token, reading in answer:
            self._settle(reading, token)
        self.finish = "stop"

    def canvas(self) -> list[Open]:
        """The whole canvas, given tokens included, once it has been read."""
        return [] if self._canvas is None or self.finish is not None else self._canvas.view()
