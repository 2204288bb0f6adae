"""A text in the making and what the model says of it, each time from one forward over all of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vermilion.decoding.caches import runs_all, window
from vermilion.decoding.forward_jobs import Wanted
from vermilion.decoding.passes import Choices, Reading
from vermilion.decoding.penalties import Adjustments, adjustments, needed
from vermilion.decoding.reference.reference_block import Question
from vermilion.decoding.repetition import RepetitionWatch
from vermilion.decoding.sampling import read
from vermilion.models.adapters import DENOISER
from vermilion.models.attention import explicit
from vermilion.models.families import Traits
from vermilion.models.linear import AdapterRows
from vermilion.models.transformer import Rows, Transformer
from vermilion.types import Decoding, Sampling


class ReferenceContext:
    """The text so far, and the two questions to ask of the model: what a clean row, what a canvas says."""

    def __init__(
        self, model: Transformer, traits: Traits, tokens: list[int], sampling: Sampling, decoding: Decoding
    ) -> None:
        self.model, self.traits, self.sampling, self.decoding = model, traits, sampling, decoding
        self.tokens = tokens
        self.prompt = tuple(tokens)
        self.limit = len(tokens) + sampling.max_tokens
        self.eos = () if sampling.ignore_eos else traits.eos_token_ids
        self.ended = False
        self.given: Container[int] = range(len(tokens))
        """Positions that guidance is against a text without."""
        self.adapter = ""
        self.watch: RepetitionWatch | None = None
        self.hidden_NH = torch.empty(0)
        """Of the newest forward's rows, which stand at their positions."""
        self.signal_MH: Tensor | None = None
        self.mixed: Mapping[int, Choices] = {}
        """Positions of a canvas that are seen as mixtures of tokens."""
        self.targets: tuple[int, ...] = ()
        """What a canvas is asked for beside the token it would choose."""
        self._kept: Tensor | None = None
        """Keys and values of every position, some of them of an earlier state of the text."""
        self._seen: dict[int, Tensor] = {}
        """Log-probabilities of positions in the last pass that asked whether they have moved."""

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
        logits = self._canvas_logits(context, block)
        settled = len(self.tokens) if since is None else since
        wanted = [self._wanted(p, history, self.targets, settled) for p in positions]
        return self._read(logits, [p - int(self.traits.shift) for p in positions], wanted)

    def ask(
        self,
        context: Sequence[int],
        block: Sequence[int | None],
        questions: Sequence[Question],
        step: int = 0,
    ) -> list[Reading]:
        """The same for questions about places of the block, which need not be masked, in its `step`-th
        pass."""
        if not questions:
            return []
        if self.decoding.cache == "none":
            logits = self._canvas_logits(context, block)
        else:
            logits = self._cached_logits(context, block, step)
        positions = [len(context) + question.place for question in questions]
        if any(question.unseen for question in questions):
            logits, unseen = logits.clone(), self._shadow_logits(context, block, positions)
            for position, question, row in zip(positions, questions, unseen, strict=True):
                if question.unseen:
                    logits[position] = row
        wanted = [
            replace(self._wanted(p, q.history, q.targets, len(self.tokens), q.banned), may_mask=q.may_mask)
            for p, q in zip(positions, questions, strict=True)
        ]
        logits = logits[[p - int(self.traits.shift) for p in positions]]
        # Before the penalties, which `read` writes into them.
        now_QV = logits.clone()
        now_QV[:, self.traits.mask_token_id] = -torch.inf
        now_QV = torch.log_softmax(now_QV, -1)
        readings = read(logits, wanted, self.traits.mask_token_id)
        for i, (question, position) in enumerate(zip(questions, positions, strict=True)):
            if question.moves:
                now = now_QV[i]
                before = self._seen.get(position)
                if before is not None:
                    kept = now > -torch.inf
                    moved = (now[kept].exp() * (now[kept] - before[kept])).sum()
                    readings[i] = replace(readings[i], divergence=float(moved))
                self._seen[position] = now
        return readings

    def _shadow_logits(
        self, context: Sequence[int], block: Sequence[int | None], positions: Sequence[int]
    ) -> Tensor:
        """Logits of masks beside the text, one for each of `positions`: each sees the text without what
        stands at its position, and the others. No row of the text sees them."""
        ids, masked, where, num_clean, visible = self._layout(context, block)
        count, more = len(ids), len(positions)
        around = torch.zeros(count + more, count + more, dtype=torch.bool)
        around[:count, :count] = visible
        around[count:] = True
        for row, position in enumerate(positions):
            around[count + row, where.index(position)] = False
        mask = [self.traits.mask_token_id] * more
        logits = self._forward(
            [*ids, *mask], [*masked, *([True] * more)], [*where, *positions], num_clean, around
        )
        return logits[count:]

    def _canvas_logits(self, context: Sequence[int], block: Sequence[int | None]) -> Tensor:
        ids, masked, where, num_clean, visible = self._layout(context, block)
        logits = self._forward(ids, masked, where, num_clean, visible)
        if not self.decoding.guidance:
            return logits
        blind = [i in self.given for i in range(len(ids))]
        ids = [self.traits.mask_token_id if hide else token for token, hide in zip(ids, blind, strict=True)]
        masked = [mask or hide for mask, hide in zip(masked, blind, strict=True)]
        without = self._forward(ids, masked, where, num_clean, visible)
        return without + (1 + self.decoding.guidance) * (logits - without)

    def _layout(
        self, context: Sequence[int], block: Sequence[int | None]
    ) -> tuple[list[int], list[bool], list[int], int, Tensor]:
        """Of a text with noisy rows: its ids, which of them are masked, their positions, how many are clean,
        and who sees whom."""
        mask = self.traits.mask_token_id
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
        if self.traits.canvas == "causal":
            visible &= at[None, :] <= at[:, None]
        return ids, [*([False] * num_clean), *masked], where, num_clean, visible

    def _cached_logits(self, context: Sequence[int], block: Sequence[int | None], step: int) -> Tensor:
        """Logits by position where a pass computes them, zeros elsewhere: the rows of a window, or all of
        them, over keys of which the others are left from earlier passes."""
        masks = [None] * (self.limit - len(context) - len(block))
        text = [*context, *block, *masks]
        if self._kept is None:
            self._kept = self.model.new_pool(len(text))
        place = range(len(context), len(context) + len(block))
        run = range(len(text))
        if not runs_all(self.decoding, step):
            run = window(self.decoding, place, len(text), self.traits.shift)
        ids = [self.traits.mask_token_id if text[i] is None else text[i] for i in run]
        pool, count = self._kept, len(run)
        rows = Rows(
            ids_N=torch.tensor(ids, device=pool.device),
            positions_N=torch.tensor(run, device=pool.device),
            masked_N=torch.tensor([text[i] is None for i in run], device=pool.device),
            slots_N=torch.tensor(run, device=pool.device),
            soft=self._soft(run),
            attend=explicit(
                self.model.architecture,
                pool,
                torch.ones(count, len(text), dtype=torch.bool),
                torch.tensor(run),
            ),
            adapters=[
                AdapterRows(DENOISER, 0, count),
                *([AdapterRows(self.adapter, 0, count)] if self.adapter else []),
            ],
        )
        with torch.inference_mode():
            logits = self.model.logits(self.model(rows, pool))
        found = logits.new_zeros(len(text), logits.shape[-1])
        found[list(run)] = logits
        return found

    def _wanted(
        self,
        position: int,
        history: Sequence[int],
        targets: Sequence[int],
        settled: int,
        banned: Sequence[int] = (),
    ) -> Wanted:
        changes = None
        if needed(self.sampling) or banned:
            ends = self.eos if position < len(self.prompt) + self.sampling.min_tokens else ()
            answer = Counter(self.tokens[len(self.prompt) : settled])
            bans = (*ends, *banned)
            changes = Adjustments.of(adjustments(self.sampling, self.prompt, answer, history, bans))
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
            soft=self._soft(positions, num_clean),
        )
        self.hidden_NH = self.model(rows, pool)
        return self.model.logits(self.hidden_NH)

    @torch.inference_mode()
    def _soft(self, positions: Sequence[int], first: int = 0) -> tuple[Tensor, Tensor] | None:
        """The noisy rows, from the `first` on, that are mixtures, and their embeddings: DMax's formula."""
        found = [row for row in range(first, len(positions)) if self.mixed.get(positions[row])]
        if not found:
            return None
        made = []
        for row in found:
            shares = [(token, math.exp(logprob)) for token, logprob in self.mixed[positions[row]]]
            shares.append((self.traits.mask_token_id, 1 - sum(share for _, share in shares)))
            parts = [(self.model.token_rows(torch.tensor([token]))[0], share) for token, share in shares]
            mean = torch.stack([share * part for part, share in parts]).sum(0)
            length = sum(share * float(part.norm()) for part, share in parts)
            made.append(mean * length / (mean.norm() + 1e-6))
        return torch.tensor(found), torch.stack(made)

    def _read(self, logits: Tensor, rows: Sequence[int], wanted: Sequence[Wanted]) -> list[Reading]:
        return read(logits[list(rows)], wanted, self.traits.mask_token_id) if rows else []
