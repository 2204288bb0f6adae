"""Every decoder again, as plainly as it can be said: no cache, no batch, no state between passes.

Each opinion of the model comes from a forward over the whole text with its visibility written out as a
matrix. What the engine computes in one forward (commit and first denoise, verification and drafts) is asked
for here in separate ones and still counted as one pass. Tests hold the engine equal to this, token for token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from vermilion.decoding.commit import (
    Node,
    accepted_child,
    chained,
    draft_tree,
    likeliest_ends,
    reopen,
)
from vermilion.decoding.decoders import settle
from vermilion.decoding.forward_jobs import Wanted
from vermilion.decoding.passes import Reading
from vermilion.decoding.penalties import Adjustments, adjustments, needed
from vermilion.decoding.prompt_lookup import NGRAM_LENGTH
from vermilion.decoding.reference.reference_drafts import levels_of
from vermilion.decoding.repetition import RepetitionWatch
from vermilion.decoding.sampling import read
from vermilion.models.adapters import DENOISER
from vermilion.models.attention import explicit
from vermilion.models.families import Traits
from vermilion.models.linear import AdapterRows
from vermilion.models.transformer import Rows, Transformer
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
        answer = ReferenceAnswer(self._model, self._traits, list(prompt), sampling, decoding)
        answer.adapter = adapter
        if sampling.stop_repetition and not sampling.ignore_eos:
            answer.watch = RepetitionWatch()
        if decoding.decoder == "ar":
            answer.autoregress()
        elif decoding.decoder in ("lossless", "relaxed"):
            answer.speculate()
        elif self._traits.has_next_token and not decoding.revise_below:
            answer.slide()
        else:
            answer.denoise_blocks()
        prefills = 0 if self._traits.context == "full" else 1
        return Result(tuple(answer.tokens[len(prompt) :]), answer.passes - prefills, answer.edits)


class ReferenceAnswer:
    """The text so far, and the two questions to ask of the model: what a clean row, what a canvas says."""

    def __init__(
        self, model: Transformer, traits: Traits, tokens: list[int], sampling: Sampling, decoding: Decoding
    ) -> None:
        self.model, self.traits, self.sampling, self.decoding = model, traits, sampling, decoding
        self.tokens = tokens
        self.prompt = tuple(tokens)
        self.limit = len(tokens) + sampling.max_tokens
        self.eos = () if sampling.ignore_eos else traits.eos_token_ids
        self.passes = 0
        self.edits = 0
        self.ended = False
        self.adapter = ""
        self.watch: RepetitionWatch | None = None
        self.hidden_NH = torch.empty(0)
        """Of the newest forward's rows, which stand at their positions."""
        self.signal_MH: Tensor | None = None
        self.targets: tuple[int, ...] = ()
        """What a canvas is asked for beside the token it would choose."""

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
        guesses = self.canvas(context, [None] * count, wanted, context[settled:], settled)
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
            for index in settle(self.decoding, readings, first, self.decoding.max_steps or len(window)):
                window[masked[index]] = readings[index].token
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
        cap = self.decoding.max_steps or len(block)
        end = min(len(block), self.limit - start)
        if self.traits.block_grid:
            opened = self.decoding.canvas_length(self._old(), self.traits.block_grid)
            end = min(end, len(self.tokens) - start + opened)
        while True:
            self.passes += 1
            masked = [i for i in range(end) if block[i] is None and not (i == 0 and forced)]
            history = [
                *self.tokens[len(self.prompt) : start],
                *(t for i, t in enumerate(block) if t is not None and start + i >= len(self.prompt)),
            ]
            readings = self.canvas(
                self.tokens[:start], block, [start + i for i in masked], history[self._old() :]
            )
            if forced is not None:
                block[0] = forced.token
            for index in settle(self.decoding, readings, forced, cap - step):
                block[masked[index]] = readings[index].token
            forced = None
            step += 1
            answer = max(0, len(self.prompt) - start)
            ends = [i for i in range(answer, end) if block[i] in self.eos]
            end = ends[0] + 1 if ends else end
            if not (self.decoding.revise_below and self.traits.has_next_token):
                end = min(end, self._repetition_end(block[:end], start))
            if all(token is not None for token in block[:end]):
                return [token for token in block[:end] if token is not None]

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

    # -- text --------------------------------------------------------------------------------------

    def settle(self, token: int) -> None:
        self.tokens.append(token)
        repeats = self.watch is not None and self.watch.push(token)
        self.ended = repeats or token in self.eos or len(self.tokens) >= self.limit

    def settle_all(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if not self.ended:
                self.settle(token)

    # -- the model ---------------------------------------------------------------------------------

    def base(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        targets: Sequence[int] = (),
        since: int | None = None,
    ) -> list[Reading]:
        """What clean rows over `tokens` say of each position from the row before it.

        `since`: how many tokens count as settled for the penalties; all that are, if None.
        """
        count = len(tokens)
        span = self.traits.block_grid if self.traits.context == "block" else 1
        at = torch.arange(count)
        visible = at[None, :] // span <= at[:, None] // span
        logits = self._forward(list(tokens), [False] * count, list(range(count)), count, visible)
        settled = len(self.tokens) if since is None else since
        wanted = [self._wanted(p, tokens[settled:p], targets, settled) for p in positions]
        return self._read(logits, [p - 1 for p in positions], wanted)

    def canvas(
        self,
        context: Sequence[int],
        block: Sequence[int | None],
        positions: Sequence[int],
        history: Sequence[int],
        since: int | None = None,
    ) -> list[Reading]:
        """What the denoiser says of masked `positions`, with `block` standing right behind `context`."""
        mask, shift = self.traits.mask_token_id, int(self.traits.shift)
        start = len(context)
        noisy = [mask if token is None else token for token in block]
        masked = [token is None for token in block]
        num_clean = start
        if self.traits.context == "causal" and block[0] is None:
            noisy, masked = [context[-1], *noisy], [False, *masked]
            num_clean = start - 1
        if self.traits.context == "full":
            rest = self.limit - start - len(block)
            noisy = [*context, *noisy, *([mask] * rest)]
            masked = [*([False] * start), *masked, *([True] * rest)]
            num_clean = 0
        ids = [*context[:num_clean], *noisy]
        where = [*range(num_clean), *range(num_clean, num_clean + len(noisy))]
        span = self.traits.block_grid if self.traits.context == "block" else 1
        at = torch.arange(len(ids))
        clean = at < num_clean
        # Clean rows see clean rows as always; noisy rows see everything.
        visible = torch.where(clean[:, None], clean & (at[None, :] // span <= at[:, None] // span), True)
        logits = self._forward(ids, [*([False] * num_clean), *masked], where, num_clean, visible)
        settled = len(self.tokens) if since is None else since
        wanted = [self._wanted(p, history, self.targets, settled) for p in positions]
        return self._read(logits, [p - shift for p in positions], wanted)

    def _wanted(self, position: int, history: Sequence[int], targets: Sequence[int], settled: int) -> Wanted:
        changes = None
        if needed(self.sampling):
            banned = self.eos if position < len(self.prompt) + self.sampling.min_tokens else ()
            answer = Counter(self.tokens[len(self.prompt) : settled])
            changes = Adjustments.of(adjustments(self.sampling, self.prompt, answer, history, banned))
        return Wanted(self.sampling, position, targets, changes, entropy=True, top=8)

    @torch.inference_mode()
    def _forward(
        self, ids: list[int], masked: list[bool], positions: list[int], num_clean: int, visible: Tensor
    ) -> Tensor:
        """Logits of all rows; visible [N, N] says which row sees which."""
        count = len(ids)
        pool = self.model.new_pool(count)
        denoiser = [AdapterRows(DENOISER, num_clean, count)] if num_clean < count else []
        own = [AdapterRows(self.adapter, 0, count)] if self.adapter else []
        at = torch.tensor(positions)
        if num_clean < count and visible[num_clean, -1]:
            # Rows that all see each other see by the window of their first one.
            at[num_clean:] = positions[num_clean]
        rows = Rows(
            ids_N=torch.tensor(ids, device=pool.device),
            positions_N=torch.tensor(positions, device=pool.device),
            masked_N=torch.tensor(masked, device=pool.device),
            slots_N=torch.arange(count, device=pool.device),
            attend=explicit(self.model.architecture, pool, visible, at),
            adapters=[*denoiser, *own],
            signal_MH=self.signal_MH,
        )
        self.hidden_NH = self.model(rows, pool)
        return self.model.logits(self.hidden_NH)

    def _read(self, logits: Tensor, rows: Sequence[int], wanted: Sequence[Wanted]) -> list[Reading]:
        return read(logits[list(rows)], wanted, self.traits.mask_token_id) if rows else []


def _likeliest_path(tree: Sequence[Node]) -> list[int]:
    """Node indexes from the root down, always to the likeliest child."""
    path: list[int] = []
    while True:
        children = [i for i, node in enumerate(tree) if node.parent == (path[-1] if path else -1)]
        if not children:
            return path
        path.append(max(children, key=lambda i: (tree[i].logprob, -i)))
