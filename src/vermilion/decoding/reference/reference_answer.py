"""Every decoder again, as plainly as it can be said: no cache, no batch, no state between passes.

Each opinion of the model comes from a forward over the whole text with its visibility written out as a
matrix. What the engine computes in one forward (commit and first denoise, verification and drafts) is asked
for here in separate ones and still counted as one pass. Tests hold the engine equal to this, token for token.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

from vermilion.decoding.commit import (
    Node,
    accepted_child,
    chained,
    draft_tree,
    likeliest_ends,
    reopen,
)
from vermilion.decoding.decoders import DECODERS
from vermilion.decoding.passes import Reading
from vermilion.decoding.prompt_lookup import NGRAM_LENGTH
from vermilion.decoding.reference.reference_block import ReferenceBlock
from vermilion.decoding.reference.reference_context import ReferenceContext
from vermilion.decoding.reference.reference_drafts import levels_of
from vermilion.decoding.repetition import RepetitionWatch
from vermilion.decoding.rules import Step
from vermilion.decoding.settling import settle
from vermilion.models.families import Traits
from vermilion.models.transformer import Transformer
from vermilion.types import Decoding, Sampling


@dataclass(frozen=True, slots=True)
class Result:
    """A whole answer: its tokens, EOS included, and what it took."""

    tokens: tuple[int, ...]
    passes: int
    edits: int


class Reference:
    """One model, one prompt, one answer at a time."""

    def __init__(self, model: Transformer, traits: Traits) -> None:
        self._model = model
        self._traits = traits

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, decoding: Decoding, adapter: str = ""
    ) -> Result:
        """The answer to `prompt` by `decoding`; the counterpart of the engine's programs.

        `adapter` is a name that the model's products know.
        """
        traits = self._traits
        if not DECODERS[decoding.decoder].needs_base:
            traits = traits.for_canvases()
        answer = ReferenceAnswer(self._model, traits, list(prompt), sampling, decoding)
        answer.adapter = adapter
        if sampling.stop_repetition and not sampling.ignore_eos:
            answer.watch = RepetitionWatch()
        if decoding.decoder == "ar":
            answer.autoregress()
        elif decoding.decoder in ("lossless", "relaxed"):
            answer.speculate()
        elif traits.has_next_token and not decoding.revise_below:
            answer.slide()
        else:
            answer.denoise_blocks()
        prefills = 0 if traits.context == "full" else 1
        return Result(tuple(answer.tokens[len(prompt) :]), answer.passes - prefills, answer.edits)


class ReferenceAnswer(ReferenceContext):
    """Every decoder in terms of these questions."""

    passes = 0
    edits = 0

    # -- decoders ----------------------------------------------------------------------------------

    def autoregress(self) -> None:
        """One token per pass, from the last clean row."""
        while not self.ended:
            self.passes += 1
            self.settle(self.base(self.tokens, [len(self.tokens)])[0].token)

    def speculate(self) -> None:
        """Keep what the base accepts; drafts only decide how much of it one pass yields."""
        decoding = self.decoding
        share = decoding.accept_above if decoding.decoder == "relaxed" else 1.0
        tree: tuple[Node, ...] = ()
        while not self.ended:
            self.passes += 1
            start = list(self.tokens)
            ends = likeliest_ends(tree, decoding.branches) if tree else (-1,)
            verified: list[int] = []
            preview = [tree[i].token for i in _likeliest_path(tree)]
            end = -1
            while not self.ended:
                targets = [node.token for node in tree if node.parent == end]
                base = self.base(self.tokens, [len(self.tokens)], targets, since=len(start))[0]
                verdict = accepted_child(tree, end, base, share)
                if verdict is None:
                    self.settle(base.token)
                    break
                end, reading = verdict
                self.settle(reading.token)
                verified.append(reading.token)
            new = self.tokens[len(start) :]
            self.edits += sum(a != b for a, b in zip(preview, new, strict=False))
            tree = self._draft([*start, *verified], len(start)) if end in ends and not self.ended else ()
            tree = chained(self._repeated(decoding.lookup) if share == 1.0 else []) or tree

    def _repeated(self, count: int) -> list[int]:
        """What stood behind the latest earlier place of the last tokens."""
        count = min(count, self.limit - 1 - len(self.tokens))
        for end in range(len(self.tokens) - 1, NGRAM_LENGTH - 1, -1):
            if not self.ended and self.tokens[end - NGRAM_LENGTH : end] == self.tokens[-NGRAM_LENGTH:]:
                return self.tokens[end : end + max(0, count)]
        return []

    def _draft(self, context: list[int], settled: int) -> tuple[Node, ...]:
        """Drafted in the same pass, when the token right behind `context` was still unknown to the masks."""
        unknown = len(context)
        length = self.decoding.canvas_length(settled - len(self.prompt))
        count = min(length - 1, self.limit - 2 - unknown)
        if count < 1:
            return ()
        wanted = [unknown + i for i in range(1, count + 1)]
        masks = count + self.traits.unread_masks
        guesses = self.canvas(context, [None] * masks, wanted, context[settled:], settled)
        rows = self.hidden_NH[[position - int(self.traits.shift) for position in wanted]]
        levels = levels_of(self.model, rows, guesses, self.tokens[-1], wanted, self.sampling)
        return draft_tree(levels, self.decoding.draft_nodes, self.tokens[-1])

    def slide(self) -> None:
        """A window of masks behind the text; each pass the base gives its first token, the rule others."""
        window: list[int | None] = []
        while not self.ended:
            self.passes += 1
            start = len(self.tokens)
            if not window or window[-1] not in self.eos:
                length = min(self.decoding.canvas_length(self._old()), self.limit - start)
                window += [None] * (length - len(window))
            first = self.base(self.tokens, [start])[0]
            masked = [i for i in range(1, len(window)) if window[i] is None]
            history = [token for token in window if token is not None]
            readings = self.canvas(self.tokens, window, [start + i for i in masked], history)
            window[0] = first.token
            left = self.decoding.max_steps or len(window)
            step = Step(self.decoding, readings, left, first, masked, ends=frozenset(self.eos))
            for index, reading in settle(step).items():
                window[masked[index]] = reading.token
            ends = [i for i, token in enumerate(window) if token in self.eos]
            window = window[: ends[0] + 1] if ends else window
            while window and window[0] is not None and not self.ended:
                self.settle(window.pop(0) or 0)

    def denoise_blocks(self) -> None:
        """Fill block after block; with revision, let the base reopen what it finds unlikely."""
        proposal: list[int] = []
        revisions = 0
        while not self.ended:
            known = [*self.tokens, *proposal]
            over = bool(proposal) and (proposal[-1] in self.eos or len(known) >= self.limit)
            if proposal:
                unlikely = self._unlikely(proposal)
                if unlikely:
                    # The commit pass was spent; what it denoised of the next block is void.
                    self.passes += 1
                    proposal = self._revise(proposal, unlikely)
                    revisions += 1
                    if revisions < self.decoding.max_revisions:
                        continue
                    self.settle_all(proposal)
                    proposal, revisions = [], 0
                    continue
                self.passes += over
                self.settle_all(proposal)
                proposal, revisions = [], 0
                continue
            start = len(self.tokens)
            if self.traits.block_grid:
                start -= start % self.traits.block_grid
            block = self._fill(self._new_block(start), start, forced=self._first(start))
            fresh = block[len(self.tokens) - start :]
            if self.decoding.revise_below > 0 and self.decoding.max_revisions and self.traits.has_next_token:
                proposal = fresh
                continue
            self.settle_all(fresh)

    def _new_block(self, start: int) -> list[int | None]:
        opened = self.decoding.canvas_length(self._old())
        length = self.traits.block_grid or min(opened, self.limit - start)
        fixed = self.tokens[start:]
        return [*fixed, *([None] * (length - len(fixed)))]

    def _first(self, start: int) -> Reading | None:
        """A block's first token, where the clean row before it gives it."""
        given = self.traits.shift and self.traits.context != "full" and start >= len(self.tokens)
        return self.base(self.tokens, [start])[0] if given else None

    def _fill(self, block: list[int | None], start: int, forced: Reading | None, step: int = 0) -> list[int]:
        """Denoise until the wanted part of `block` is filled; returns that part."""
        end = min(len(block), self.limit - start)
        if self.traits.block_grid:
            opened = self.decoding.canvas_length(self._old(), self.traits.block_grid)
            end = min(end, len(self.tokens) - start + opened)
        canvas = self.block(block, start)
        canvas.number = step
        edits, stands = canvas.decoder.edit is not None, canvas.decoder.stands
        stands = stands or self.decoding.cache != "none"
        while True:
            self.passes += 1
            if forced is not None and self.traits.block_grid:
                canvas.begin(forced)
            else:
                canvas.forced = forced
                self.mixed = {start + place: choices for place, choices in canvas.mixed.items()}
                canvas.step(end, partial(self.ask, self.tokens[:start], canvas.ids, step=canvas.number))
            forced = None
            answer = max(0, len(self.prompt) - start)
            ends = [i for i in range(answer, end) if canvas.ids[i] in self.eos]
            if ends and (canvas.done or not edits):
                end = ends[0] + 1
            if not stands and not (self.decoding.revise_below and self.traits.has_next_token):
                end = min(end, self._repetition_end(canvas.ids[:end], start))
            if canvas.done or (not edits and None not in canvas.ids[:end]):
                self.edits += canvas.edits
                return [token for token in canvas.ids[:end] if token is not None]

    def block(self, ids: Sequence[int | None], start: int) -> ReferenceBlock:
        """For this answer's decoder to fill."""
        decoding, seed, ends = self.decoding, self.sampling.seed, frozenset(self.eos)
        settled = len(self.tokens) - start
        return ReferenceBlock(decoding, self.traits, list(ids), start, seed, ends, settled=settled)

    def _repetition_end(self, block: Sequence[int | None], start: int) -> int:
        """Where the filled beginning of `block` turns into mere repetition; its length if it does not."""
        watch = deepcopy(self.watch)
        for i, token in enumerate(block):
            if token is None:
                break
            if watch is not None and start + i >= len(self.tokens) and watch.push(token):
                return i + 1
        return len(block)

    def _old(self) -> int:
        """Settled answer tokens: what the penalties count apart from the history."""
        return len(self.tokens) - len(self.prompt)

    def _unlikely(self, proposal: list[int]) -> tuple[int, ...]:
        start = len(self.tokens)
        known = [*self.tokens, *proposal]
        targets = list(range(start + 1, len(known)))
        checks = [self.base(known[:p], [p], [known[p]])[0] for p in targets]
        return reopen([0.0, *(check.target_logprobs[0] for check in checks)], self.decoding.revise_below)

    def _revise(self, proposal: list[int], unlikely: tuple[int, ...]) -> list[int]:
        """Settle what stands before the first unlikely token, fill the unlikely ones anew."""
        first = unlikely[0]
        self.settle_all(proposal[:first])
        block = [None if i in unlikely else token for i, token in enumerate(proposal)][first:]
        filled = self._fill(block, len(self.tokens), forced=None, step=1)
        for i in unlikely:
            if i - first < len(filled) and filled[i - first] != proposal[i]:
                self.edits += 1
        return filled


def _likeliest_path(tree: Sequence[Node]) -> list[int]:
    """Node indexes from the root down, always to the likeliest child."""
    path: list[int] = []
    while True:
        children = [i for i, node in enumerate(tree) if node.parent == (path[-1] if path else -1)]
        if not children:
            return path
        path.append(max(children, key=lambda i: (tree[i].logprob, -i)))
