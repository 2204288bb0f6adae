"""One batch through the frozen base and the denoiser: noise for the whole, then loss part by part.

Shapes: B rows, L positions, R scored rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vermilion.training import corruption, objectives
from vermilion.training.data import TokenBatch
from vermilion.training.forward import Forward, NoisyRows
from vermilion.training.masks import Layout, number_blocks, two_pass
from vermilion.training.objectives import Scored, Targets
from vermilion.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Noisy:
    """A batch with its blocks and one or two noisy copies, on the CPU."""

    batch: TokenBatch
    block_BL: Tensor
    copies: tuple[tuple[NoisyRows, Targets], ...]

    @property
    def weight(self) -> float:
        """Sum over every scored token: what the summed loss is divided by."""
        return sum(float(targets.weight_BL.double().sum()) for _, targets in self.copies)

    def rows(self, start: int, end: int) -> Noisy:
        """The rows [start, end)."""
        part = slice(start, end)
        copies = tuple(
            (
                NoisyRows(rows.ids_BL[part], rows.masked_BL[part]),
                Targets(targets.weight_BL[part], targets.taught_BL[part], targets.shift),
            )
            for rows, targets in self.copies
        )
        return Noisy(self.batch.rows(start, end), self.block_BL[part], copies)


@dataclass(frozen=True, slots=True)
class Opinions:
    """What came out for the scored rows of one noisy copy."""

    scored: Scored
    logits_RV: Tensor
    base_logits_RV: Tensor
    """The frozen base's, for the same tokens, with all before them known."""
    loss_R: Tensor


def add_noise(
    recipe: Recipe, batch: TokenBatch, block_length: int, vocab_size: int, rng: torch.Generator
) -> Noisy:
    """Blocks and noise for a whole batch at once, so that they do not depend on how it is split.

    The first token of a block is never hidden: at inference it is the last settled one.
    """
    config = recipe.corruption
    shift_B1 = torch.randint(0, block_length, (batch.ids_BL.shape[0], 1), generator=rng)
    block_BL = number_blocks(batch.document_BL, batch.position_BL, block_length, shift_B1)
    maskable_BL = objectives.maskable(batch, block_BL, anchored=True)
    draws = [corruption.draw(config, block_BL, maskable_BL, block_length, rng)]
    if config.complementary:
        draws.append(corruption.complement(draws[0], maskable_BL))
    copies = []
    for drawn in draws:
        ids_BL, replaced_BL = batch.ids_BL, torch.zeros_like(drawn.masked_BL)
        if config.wrong_tokens:
            visible_BL = maskable_BL & ~drawn.masked_BL
            ids_BL, replaced_BL = corruption.replace_visible(
                ids_BL, visible_BL, config.wrong_tokens, vocab_size, rng
            )
        targets = objectives.targets(recipe.objective, batch, block_BL, (drawn, replaced_BL), shift=True)
        copies.append((NoisyRows(ids_BL, drawn.masked_BL), targets))
    return Noisy(batch, block_BL, tuple(copies))


def ask(forward: Forward, recipe: Recipe, noisy: Noisy) -> Iterator[Opinions]:
    """The denoiser's opinions, one noisy copy after the other; copies without a scored row are left out.

    The clean pass runs once and without gradient: the base is frozen.
    """
    device = forward.model.norm.weight.device
    ids_BL, position_BL = noisy.batch.ids_BL.to(device), noisy.batch.position_BL.to(device)
    layout = Layout(noisy.batch.document_BL.to(device), noisy.block_BL.to(device), "causal")
    clean_BLL, noisy_BL2L = two_pass(layout)
    with torch.no_grad():
        hidden_BLH, past = forward.clean(ids_BL, position_BL, clean_BLL)
    for rows, targets in noisy.copies:
        picked = objectives.select(targets, noisy.batch.ids_BL)
        if not len(picked.row_R):
            continue
        scored = Scored(*(getattr(picked, field.name).to(device) for field in fields(picked)))
        moved = NoisyRows(rows.ids_BL.to(device), rows.masked_BL.to(device))
        noisy_BLH = forward.noisy(moved, position_BL, noisy_BL2L, past)
        logits_RV = forward.model.logits(noisy_BLH.flatten(0, 1)[scored.row_R])
        with torch.no_grad():
            base_RV = forward.model.logits(hidden_BLH.flatten(0, 1)[scored.row_R])
        loss_R = objectives.losses(recipe.objective, logits_RV, scored, base_RV)
        yield Opinions(scored, logits_RV, base_RV, loss_R)
