"""Block diffusion: one state machine for causal-context, block-causal and fully bidirectional models.

A canvas of masked positions is denoised over several passes; each settles what the decoder's rule accepts.
When it is full, its tokens ride as clean rows (the commit, which stores their keys and values) in the same
forward as the first denoise of the next canvas, so a block costs no pass of its own. A block whose first
token comes from the row before it is denoised from the pass after that on.

Where clean rows are an autoregressive model, every pass commits what the last one settled, so its first
masked position always gets the base's own token and the canvas slides on behind it. With `revise_below` the
canvas stands still instead and, once full, waits as a proposal: the commit rows give the base's probability
of each token, and the unlikely ones are masked again and denoised with the block's later tokens in sight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from vermilion.decoding.caches import runs_all, window
from vermilion.decoding.canvas import UNREAD, MaskedCanvas
from vermilion.decoding.commit import reopen
from vermilion.decoding.companion_rows import guided, leave_one_out, unconditional
from vermilion.decoding.decoders import DECODERS
from vermilion.decoding.drafting import DraftBudget
from vermilion.decoding.left_edge import held
from vermilion.decoding.passes import Pass, Read, Reading, Segment
from vermilion.decoding.program import Open, Program, Task
from vermilion.decoding.repetition import RepetitionWatch
from vermilion.models.families import Traits


class Blocks(Program):
    """The decoders that have a rule."""

    def __init__(self, task: Task, traits: Traits) -> None:
        if traits.has_next_token:
            # Of a canvas that slides on no part comes before another.
            task = replace(task, decoding=replace(task.decoding, sub_block=0))
        super().__init__(task, traits)
        self._decoder = DECODERS[task.decoding.decoder]
        self.cache = "" if task.decoding.cache == "none" else task.decoding.cache
        self._holds = self._decoder.stands or bool(self.cache)
        self._watch = RepetitionWatch() if task.stop_repetition else None
        self._canvas: MaskedCanvas | None = None
        self._proposal: MaskedCanvas | None = None

    @property
    def max_slots(self) -> int:
        # The last block may reach past the limit, and an anchor repeats the token before the canvas.
        longest = self.traits.block_grid or min(self.task.decoding.block_length, self.task.max_tokens)
        beside = longest if self._decoder.leaves_out else self.limit if self.task.decoding.guidance else 0
        return self.limit + self.traits.block_grid + 1 + beside

    @property
    def cacheable(self) -> int:
        if self.traits.context == "full":
            return 0
        start = min(self._canvas.start, len(self.tokens)) if self._canvas else len(self.tokens)
        grid = self.traits.block_grid
        if not grid:
            return start - 1
        # Only whole blocks: a block's keys and values depend on all of it. With a shift the last one must run
        # in the program's own pass, whose last clean row gives the next block's first token.
        whole = start // grid * grid
        return max(0, whole - grid) if self.traits.shift and whole == len(self.tokens) else whole

    def forget(self) -> None:
        super().forget()
        if self._decoder.keeps_past or self.cache:
            # What was kept of earlier passes is gone too: the block begins again, to the same end.
            self._canvas = None

    # -- what to compute ---------------------------------------------------------------------------

    def plan(self, budget: DraftBudget | None = None) -> Pass:
        proposed = self._proposed()
        known = [*self.tokens, *proposed]
        if self._canvas is None and not self._ends(proposed):
            self._canvas = self._opened(len(known))
        canvas = self._canvas
        stop = min(canvas.start, len(known)) if canvas else len(known)
        segments: list[Segment] = []
        reads: list[Read] = []
        if self.traits.context != "full" and stop > self.cached:
            segments.append(self._clean(known, stop))
            reads += self._checks(known, len(proposed))
            if canvas and self._from_base(canvas):
                history = tuple(proposed)
                reads.append(Read(stop - 1 - self.cached, canvas.start, "next", history=history))
        if canvas and not self._only_begins(canvas):
            reads += self._denoise(canvas, known, segments)
        return Pass(tuple(segments), tuple(reads))

    def _proposed(self) -> list[int]:
        if self._proposal is None:
            return []
        return [token for token in self._proposal.ids[: self._proposal.end] if token is not None]

    def _ends(self, proposed: Sequence[int]) -> bool:
        """Whether the answer is over if the proposal is kept."""
        return bool(proposed) and (
            proposed[-1] in self.task.eos or len(self.tokens) + len(proposed) >= self.limit
        )

    def _opened(self, known: int) -> MaskedCanvas:
        """A new canvas behind `known` tokens; on a grid its first positions may already be fixed."""
        grid = self.traits.block_grid
        opened = self.task.decoding.canvas_length(known - len(self.task.prompt), grid)
        start = known // grid * grid if grid else known
        length = grid or min(opened, self.limit - known)
        tokens = self.tokens[start:known]
        ids: list[int | None] = [*tokens, *([None] * (length - len(tokens)))]
        end = min(length, self.limit - start, known - start + opened)
        # Everything sees everything, the masks up to the end of the answer included.
        future = max(0, self.limit - start - length) if self.traits.context == "full" else 0
        return MaskedCanvas(start, ids, end, right=(None,) * future)

    def _from_base(self, canvas: MaskedCanvas) -> bool:
        """Whether the canvas's first token comes from the clean row before it: on opening, with a shift."""
        return (
            self.traits.shift
            and self.traits.context != "full"
            and canvas.steps == 0
            and canvas.ids[0] is None
        )

    def _only_begins(self, canvas: MaskedCanvas) -> bool:
        """Whether the next pass only gives the canvas its first token, which the other positions of a block
        are to see, as in training."""
        return bool(self.traits.block_grid) and self._from_base(canvas)

    def _checks(self, known: list[int], num_proposed: int) -> list[Read]:
        """Reads of the base's probability of each proposed token but the first: that one is the base's own
        choice, or a revision's, which stands."""
        first = len(known) - num_proposed
        return [
            Read(
                position - 1 - self.cached,
                position,
                "check",
                (known[position],),
                tuple(known[first:position]),
            )
            for position in range(first + 1, len(known))
        ]

    def _denoise(self, canvas: MaskedCanvas, known: list[int], segments: list[Segment]) -> list[Read]:
        """Append the noisy rows of `canvas` to `segments`; returns the reads of its masked positions."""
        before = sum(len(segment.ids) for segment in segments)
        left = known[: canvas.start] if self.traits.context == "full" else []
        if self.traits.context == "causal" and canvas.ids[0] is None:
            # The token before a masked first position anchors the block, as in training.
            left = known[canvas.start - 1 : canvas.start]
        slot = 0 if self.traits.context == "full" else canvas.start
        whole = canvas.rows(self.traits, left, slot)
        if runs_all(self.task.decoding, canvas.steps):
            segments.append(whole)
        else:
            segments.append(whole.part(self._window(canvas, len(whole.ids))))
        history = (
            (*known[len(self.tokens) :], *canvas.filled())
            if canvas.start >= len(self.tokens)
            else tuple(token for token in canvas.ids[len(self.tokens) - canvas.start :] if token is not None)
        )
        row, cap = before + canvas.start - segments[-1].start, len(canvas.ids)
        mask, guidance = self.traits.mask_token_id, self.task.decoding.guidance
        if self._decoder.leaves_out:
            positions = [canvas.start + i for i in canvas.changing()]
            segments += leave_one_out(whole, positions, mask)
        elif guidance:
            segments.append(unconditional(whole, range(len(self.task.prompt), self.limit), mask))
        reads = canvas.reads(row, self.traits, history, self.task.decoding, cap)
        if guidance:
            reads = guided(reads, whole, guidance)
        if self.task.constraint is not None:
            guesses = [reading.token for reading in canvas.readings[len(self.tokens) - canvas.start :]]
            reads = held(reads, guesses, len(self.tokens), self.task.constraint)
        return reads[1:] if self._from_base(canvas) else reads

    def _window(self, canvas: MaskedCanvas, length: int) -> range:
        """Positions that a pass with the cache runs of a text of `length`."""
        block = range(canvas.start, canvas.start + len(canvas.ids))
        return window(self.task.decoding, block, length, self.traits.shift)

    # -- what to make of it ------------------------------------------------------------------------

    def apply(self, readings: Sequence[Reading]) -> None:
        self._count_pass()
        planned = list(readings)
        if self._proposal is not None:
            kept = self._judge(planned)
            if not kept or self.finish is not None:
                return
        canvas = self._canvas
        assert canvas is not None
        if self.traits.context != "full":
            self.cached = max(self.cached, canvas.start)
        if self._only_begins(canvas):
            canvas.begin(planned.pop(0))
        else:
            self.cached_passes += not runs_all(self.task.decoding, canvas.steps)
            forced = planned.pop(0) if self._from_base(canvas) else None
            canvas.fill(self.task, self.traits, planned, len(canvas.ids), forced)
        if self._decoder.edit is None or canvas.done:
            self._truncate(canvas)
        self._advance(canvas)

    def _truncate(self, canvas: MaskedCanvas) -> None:
        """Nothing behind an EOS of the answer is wanted any more."""
        answer_start = max(0, len(self.task.prompt) - canvas.start)
        for i in range(answer_start, canvas.end):
            if canvas.ids[i] in self.task.eos:
                canvas.end = i + 1
                break

    def _advance(self, canvas: MaskedCanvas) -> None:
        """Settle what is final; a full canvas becomes a proposal or is done with."""
        if self._holds and not (canvas.done or (self._decoder.edit is None and not canvas.masked())):
            return
        self.edits += canvas.edits
        end = canvas.start + canvas.end
        changed = [
            position
            for position, old in canvas.before.items()
            if position < end and canvas.ids[position - canvas.start] not in (None, old)
        ]
        canvas.edited.update(changed)
        if not canvas.masked():
            # Only now is it known which of them an EOS has cut off.
            self.edits += len(changed)
            canvas.before.clear()
        decoding = self.task.decoding
        may_revise = (
            decoding.revise_below > 0
            and self.traits.has_next_token
            and canvas.revisions < decoding.max_revisions
        )
        if may_revise:
            if not canvas.masked():
                self._proposal, self._canvas = canvas, None
            return
        for i in range(len(self.tokens) - canvas.start, canvas.end):
            token = canvas.ids[i]
            if token is None:
                if decoding.revise_below == 0 and self.traits.has_next_token:
                    self._slide(canvas)
                return
            self._settle(canvas.readings[i], token)
            if self.finish is not None:
                return
        self._canvas = None

    def _slide(self, canvas: MaskedCanvas) -> None:
        """Move the canvas behind the settled text: the next pass opens it again, with the base's own token
        first. The positions of a causal model's block gain nothing from standing still."""
        done = len(self.tokens) - canvas.start
        canvas.start += done
        canvas.ids = canvas.ids[done : canvas.end]
        canvas.readings = canvas.readings[done : canvas.end]
        canvas.steps = 0
        if canvas.ids and canvas.ids[-1] not in self.task.eos:
            length = self.task.decoding.canvas_length(canvas.start - len(self.task.prompt))
            more = min(length, self.limit - canvas.start) - len(canvas.ids)
            canvas.ids += [None] * more
            canvas.readings += [UNREAD] * more
        canvas.end = len(canvas.ids)

    def _judge(self, planned: list[Reading]) -> bool:
        """Take the check readings off `planned`; keep the proposal, or reopen part of it and say False."""
        proposal = self._proposal
        assert proposal is not None
        self._proposal = None
        checks = [planned.pop(0) for _ in range(1, proposal.end)]
        base = [math.inf, *(check.target_logprobs[0] for check in checks)]
        unlikely = reopen(base, self.task.decoding.revise_below)
        final = unlikely[0] if unlikely else proposal.end
        for i in range(final):
            token = proposal.ids[i]
            self._settle(proposal.readings[i], token)
            if self.finish is not None:
                return True
        if not unlikely:
            return True
        # The clean rows before the first reopened token are good.
        self.cached = proposal.start + final
        for i in unlikely:
            proposal.before[proposal.start + i] = int(proposal.ids[i] or 0)
            proposal.ids[i] = None
        self._canvas = MaskedCanvas(
            start=proposal.start + final,
            ids=proposal.ids[final : proposal.end],
            end=proposal.end - final,
            readings=proposal.readings[final : proposal.end],
            steps=1,
            revisions=proposal.revisions + 1,
            before=proposal.before,
            edited=proposal.edited,
        )
        return False

    def canvas(self) -> list[Open]:
        parts = [part for part in (self._proposal, self._canvas) if part is not None]
        return [place for part in parts for place in part.view(len(self.tokens) - part.start)]
