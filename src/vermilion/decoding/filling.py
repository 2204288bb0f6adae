"""One canvas between fixed text: a gap whose length is looked for, or places that are open in a given text.

A gap, for models without a base: canvases of growing lengths are each denoised once; the one whose masks are
filled most surely, on average, is then denoised on. A fully bidirectional model sees the whole suffix; a
block-causal one sees its head, in the canvas's own block.

An answer, or a gap, whose length the decoder finds while it fills it: one canvas that grows (`growing.py`).

Seeds, for all models: the given tokens to the right count as much as those to the left. With candidates one
pass reads how likely each is; without, the places are denoised until none is open. Nothing of a canvas is
stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vermilion.decoding.canvas import MaskedCanvas
from vermilion.decoding.companion_rows import guided, leave_one_out, unconditional
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


def num_rows(decoding: Decoding, length: int, fixed: int) -> int:
    """Rows that reading a canvas of `length` beside `fixed` tokens takes."""
    if decoding.guidance:
        return 2 * (length + fixed)
    return fixed + (2 if DECODERS[decoding.decoder].leaves_out else 1) * length


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


def filling_decoding(decoding: Decoding, *, gap: bool) -> Decoding:
    """How open places are filled: `ar` one a pass, other decoders that need a base by confidence. Where they
    are no `gap` of unknown length their number stays."""
    decoding = replace(decoding, sub_block=0)
    decoder = DECODERS[decoding.decoder]
    if decoder.grows:
        if gap and decoder.needs:
            return decoding
        one = replace(decoding, decoder="entropy", threshold=0.0)
        return one if decoder.uses_entropy else replace(decoding, decoder="threshold")
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


def growing_canvas(
    decoding: Decoding, traits: Traits, start: int, most: int, suffix: Sequence[int]
) -> MaskedCanvas:
    """The canvas at `start` that may become `most` long. Where the model has tokens of its own for that, the
    text is closed by an end, as in DreamOn's training."""
    ends = traits.eos_token_ids[:1] if DECODERS[decoding.decoder].needs else ()
    masks: list[int | None] = [None] * min(decoding.first_length, most)
    return MaskedCanvas(start, masks, right=(*suffix, *ends), most=most)


class GapFilling(Program):
    """Decoders with a rule for canvases, and the others by way of `filling_decoding`."""

    def __init__(self, task: Task, traits: Traits) -> None:
        if task.seeds is not None or task.suffix:
            decoding = filling_decoding(task.decoding, gap=task.seeds is None)
            task = replace(task, decoding=decoding)
        super().__init__(task, traits)
        self._grows = DECODERS[task.decoding.decoder].grows
        self._answers = task.seeds is None and not task.suffix
        seeds, known = task.seeds, len(task.prompt)
        self._candidates = seeds.candidates if seeds is not None else ()
        if seeds is not None:
            self._untried = [MaskedCanvas(known, list(seeds.ids))]
        elif self._grows:
            canvas = growing_canvas(task.decoding, traits, known, task.max_tokens, task.suffix)
            self._untried = [canvas]
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
        length = max(len(canvas.ids), canvas.most)
        return num_rows(self.task.decoding, length, canvas.start - self._begin + len(canvas.right))

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
        decoding = self.task.decoding
        slot, left = self._begin, self.task.prompt[self._begin :]
        for canvas in self._asked:
            row = sum(len(earlier.ids) for earlier in segments) + len(left)
            segments.append(canvas.rows(self.traits, left, slot))
            rows = segments[-1]
            segments += self._beside(canvas, rows)
            slot = segments[-1].slot + len(segments[-1].ids)
            filled = canvas.ids[len(self.settled) :]
            history = () if self._candidates else tuple(token for token in filled if token is not None)
            asked = canvas.reads(row, self.traits, history, decoding, self._cap(canvas))
            reads += guided(asked, rows, decoding.guidance) if decoding.guidance else asked
        if self._candidates:
            pairs = zip(reads, self._candidates, strict=True)
            reads = [replace(read, targets=targets, banned=()) for read, targets in pairs]
        return Pass(tuple(segments), tuple(reads))

    def _beside(self, canvas: MaskedCanvas, rows: Segment) -> list[Segment]:
        mask, positions = self.traits.mask_token_id, [canvas.start + i for i in canvas.changing()]
        if DECODERS[self.task.decoding.decoder].leaves_out and not self._candidates:
            return leave_one_out(rows, positions, mask)
        return [unconditional(rows, frozenset(positions), mask)] if self.task.decoding.guidance else []

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
        for i in range(len(self.settled), canvas.final):
            if self.finish is None:
                self._settle(canvas.readings[i], canvas.ids[i])
        if self.finish is not None:
            return
        if canvas.done or not (canvas.masked() or DECODERS[self.task.decoding.decoder].edit):
            self._end(canvas)

    def _cap(self, canvas: MaskedCanvas) -> int:
        return canvas.most + len(canvas.given) if self._grows else canvas.given.count(None)

    def forget(self) -> None:
        super().forget()
        if self._canvas is not None and DECODERS[self.task.decoding.decoder].keeps_past:
            self._canvas = self._canvas.reopened()

    def _end(self, canvas: MaskedCanvas) -> None:
        """Answer with the tokens of the open places, in order."""
        self.edits += canvas.edits
        places = range(len(self.settled), len(canvas.ids)) if self._grows else self._open
        answer = [(canvas.ids[i] or 0, canvas.readings[i]) for i in places]
        if self.task.suffix:
            ends = self.task.eos | {self.traits.mask_token_id}
            answer = answer[: len(trimmed([token for token, _ in answer], self.task.suffix, ends))]
        for token, reading in answer:
            self._settle(reading, token)
            if self._answers and self.finish is not None:
                return
        self.finish = "stop"

    def canvas(self) -> list[Open]:
        """The canvas, given tokens included, once it has been read; without what is settled of it."""
        over = self._canvas is None or self.finish is not None
        return [] if over or self._canvas is None else self._canvas.view(len(self.settled))
