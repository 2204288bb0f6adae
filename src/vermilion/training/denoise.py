"""One batch through the model: noise for the whole of it, then opinions and losses part by part.

Shapes: B rows, L positions, R scored rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from vermilion.data.packing import TokenBatch
from vermilion.models.layers import KeysValues
from vermilion.models.transformer import Transformer
from vermilion.training import corruption, objectives
from vermilion.training.forward import Forward, NoisyRows, Seen
from vermilion.training.masks import Layout, number_blocks
from vermilion.training.objectives import Scored, Targets
from vermilion.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Copy:
    """One noisy copy of a batch, on the CPU."""

    rows: NoisyRows
    targets: Targets
    own_B1: Tensor
    """bool: rows whose masks the denoiser fills before it is asked."""

    def part(self, part: slice) -> Copy:
        rows, targets = self.rows, self.targets
        return Copy(
            NoisyRows(rows.ids_BL[part], rows.masked_BL[part]),
            Targets(targets.weight_BL[part], targets.taught_BL[part], targets.shift),
            self.own_B1[part],
        )


@dataclass(frozen=True, slots=True)
class Noisy:
    """A batch with its blocks, its noisy copies and the weights of its next tokens, on the CPU."""

    batch: TokenBatch
    block_BL: Tensor
    copies: tuple[Copy, ...]
    next_BL: Tensor

    @property
    def weights(self) -> tuple[float, float]:
        """Sums over every scored noisy row and clean row: what the summed losses are divided by."""
        noisy = sum(float(copy.targets.weight_BL.double().sum()) for copy in self.copies)
        return max(noisy, 1e-9), max(float(self.next_BL.double().sum()), 1e-9)

    def rows(self, start: int, end: int) -> Noisy:
        """The rows [start, end)."""
        part = slice(start, end)
        copies = tuple(copy.part(part) for copy in self.copies)
        return Noisy(self.batch.rows(start, end), self.block_BL[part], copies, self.next_BL[part])

    def parts(self, num_rows: int) -> Iterator[Noisy]:
        """Pieces of at most `num_rows` rows."""
        for start in range(0, self.block_BL.shape[0], num_rows):
            yield self.rows(start, min(start + num_rows, self.block_BL.shape[0]))


@dataclass(frozen=True, slots=True)
class Opinions:
    """What came out for the scored rows of one stream."""

    scored: Scored
    logits_RV: Tensor
    base_logits_RV: Tensor | None
    """The clean stream's for the same tokens, with all before them known; None where it has none."""
    loss_R: Tensor
    noisy: bool
    """Rows of a noisy copy; otherwise clean rows, asked for the next token."""


def add_noise(
    recipe: Recipe, batch: TokenBatch, block_length: int, vocab_size: int, rng: torch.Generator
) -> Noisy:
    """Blocks and noise for a whole batch at once, so that they do not depend on how it is split.

    With the shift and a causal context, the first token of a block is never hidden: at inference it is the
    last settled one. On a grid it is hidden like the others, and the clean row before it gives it.
    """
    config = recipe.corruption
    shift_B1 = torch.randint(0, block_length, (batch.ids_BL.shape[0], 1), generator=rng)
    if recipe.context != "causal":
        # At inference blocks lie on a grid from position 0, or the whole answer is one.
        shift_B1 = torch.zeros_like(shift_B1)
        block_length = block_length if recipe.context == "block" else batch.ids_BL.shape[1]
    block_BL = number_blocks(batch.document_BL, batch.position_BL, block_length, shift_B1)
    next_BL = objectives.next_token_weight(batch, block_BL, recipe.context)
    if recipe.objective.denoise == 0:
        return Noisy(batch, block_BL, (), next_BL)
    anchored = recipe.shift and recipe.context == "causal"
    maskable_BL = objectives.maskable(batch, block_BL, anchored=anchored)
    draws = [corruption.draw(config, block_BL, maskable_BL, block_length, rng)]
    if config.complementary:
        draws.append(corruption.complement(draws[0], maskable_BL))
    copies = []
    for drawn in draws:
        ids_BL, replaced_BL = batch.ids_BL, torch.zeros_like(drawn.masked_BL)
        own_B1 = corruption.on_policy_rows(config.on_policy, len(ids_BL), rng)
        if config.wrong_tokens:
            visible_BL = maskable_BL & ~drawn.masked_BL
            ids_BL, replaced_BL = corruption.replace_visible(
                ids_BL, visible_BL, config.wrong_tokens, vocab_size, rng
            )
        rescored_BL = replaced_BL | (maskable_BL & own_B1)
        targets = objectives.targets(
            recipe.objective, batch, block_BL, (drawn, rescored_BL), shift=recipe.shift
        )
        # A denoiser that sees its own guesses to the right knows more than the teacher, or something else.
        targets = replace(targets, taught_BL=targets.taught_BL & ~own_B1)
        copies.append(Copy(NoisyRows(ids_BL, drawn.masked_BL), targets, own_B1))
    return Noisy(batch, block_BL, tuple(copies), next_BL)


def loss_of(recipe: Recipe, opinions: Opinions, weights: tuple[float, float]) -> Tensor:
    """Their part of the batch's loss; `weights` are those of the whole batch."""
    summed = (opinions.loss_R * opinions.scored.weight_R).sum()
    if opinions.noisy:
        return summed * (recipe.objective.denoise / weights[0])
    return summed * (recipe.objective.next_token / weights[1])


def ask(forward: Forward, recipe: Recipe, noisy: Noisy, *, base: bool = False) -> Iterator[Opinions]:
    """The model's opinions: on the next token where the recipe trains that, then one noisy copy after the
    other; `base`: with the clean stream's beside them, even where no teacher is wanted.

    The clean pass runs once, and without gradient where its weights are frozen.
    """
    base = base or bool(recipe.objective.teacher or recipe.objective.total_variation)
    device = forward.model.norm.weight.device
    ids_BL, position_BL = noisy.batch.ids_BL.to(device), noisy.batch.position_BL.to(device)
    seen = forward.seen(Layout(noisy.batch.document_BL.to(device), noisy.block_BL.to(device), recipe.context))
    clean_BLH, past = None, None
    if recipe.context != "full":
        with nullcontext() if recipe.trains_clean else torch.no_grad():
            clean_BLH, past = forward.clean(ids_BL, position_BL, seen)
        if recipe.objective.next_token:
            scored = _scored(Targets(noisy.next_BL, noisy.next_BL > 0, True), noisy, device)
            logits_RV = forward.model.logits(clean_BLH.flatten(0, 1)[scored.row_R])
            loss_R = objectives.losses(_PLAIN, logits_RV, scored, None)
            yield Opinions(scored, logits_RV, logits_RV.detach(), loss_R, False)
    for copy in noisy.copies:
        scored = _scored(copy.targets, noisy, device)
        rows = _shown(forward, copy, (position_BL, seen, past), device)
        with torch.no_grad() if recipe.method == "draft_head" else nullcontext():
            hidden_RH = forward.noisy(rows, position_BL, seen, past).flatten(0, 1)[scored.row_R]
        # The clean row before a token knows all before it, whichever row the denoiser answers in.
        before_R = scored.row_R - int(not recipe.shift)
        if recipe.method == "draft_head":
            hidden_RH = _told(forward.model, hidden_RH, ids_BL.reshape(-1)[before_R])
        logits_RV = forward.model.logits(hidden_RH)
        base_RV = None
        if clean_BLH is not None and base:
            with torch.no_grad():
                base_RV = forward.model.logits(clean_BLH.detach().flatten(0, 1)[before_R])
        loss_R = objectives.losses(recipe.objective, logits_RV, scored, base_RV)
        yield Opinions(scored, logits_RV, base_RV, loss_R, True)


def _told(model: Transformer, hidden_RH: Tensor, before_R: Tensor) -> Tensor:
    """The rows' hidden states once they know the token before the one they predict."""
    assert model.draft_head is not None
    told_RH: Tensor = model.draft_head(hidden_RH, model.embedding.rows(before_R))
    return hidden_RH + told_RH


_PLAIN = objectives.ObjectiveConfig(teacher=0.0)


def _scored(targets: Targets, noisy: Noisy, device: torch.device) -> Scored:
    picked = objectives.select(targets, noisy.batch.ids_BL)
    return Scored(*(getattr(picked, field.name).to(device) for field in fields(picked)))


def _shown(
    forward: Forward,
    copy: Copy,
    known: tuple[Tensor, Seen, list[KeysValues] | None],
    device: torch.device,
) -> NoisyRows:
    """The copy's rows on the model's device; where asked for, with the denoiser's own tokens in the masks."""
    rows = NoisyRows(copy.rows.ids_BL.to(device), copy.rows.masked_BL.to(device))
    own_B1 = copy.own_B1.to(device)
    if not copy.own_B1.any():
        return rows
    with torch.no_grad():
        hidden_BLH = forward.noisy(rows, *known)
        at_R = (rows.masked_BL & own_B1).reshape(-1).nonzero()[:, 0]
        logits_RV = forward.model.logits(hidden_BLH.flatten(0, 1)[at_R - int(copy.targets.shift)])
        predicted_N = rows.ids_BL.reshape(-1).clone()
        predicted_N[at_R] = logits_RV.argmax(-1)
    return NoisyRows(
        *corruption.fill_masks(rows.ids_BL, rows.masked_BL, own_B1, predicted_N.view_as(rows.ids_BL))
    )
