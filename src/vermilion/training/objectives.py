"""What the denoiser is asked for: which rows are scored, by how much, against what.

Pure functions. Shapes: B rows, L positions, R scored rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vermilion.data.packing import TokenBatch
from vermilion.errors import ConfigError
from vermilion.training.corruption import Draw
from vermilion.training.masks import Context


@dataclass(frozen=True, slots=True)
class ObjectiveConfig:
    """The loss of a batch is denoise x (mean over noisy rows) + next_token x (mean over clean rows).

    A noisy row costs, before its weight,

    (1 - teacher) CE + teacher KL(next-token stream || denoiser) + total_variation TV
        + certainty [token is right] entropy

    where KL and TV apply only with no visible token to the right in the block: there the best denoiser is an
    average of next-token distributions. The teacher does not know of one in sight: CE stands alone. A clean
    row costs the cross-entropy of the next token.
    """

    denoise: float = 1.0
    next_token: float = 0.0
    """Only where the clean rows' weights are trained; without it they forget the language (2607.05722)."""
    teacher: float = 0.7
    total_variation: float = 0.0
    """Weight of half the L1 distance to the teacher: a draft is refused with exactly that probability
    (arXiv 2609.04010)."""
    certainty: float = 0.0
    """Weight of the entropy (arXiv 2509.26488, 2512.15745): sharper where already right."""
    certainty_temperature: float = 0.5
    weighting: Literal["mean", "inverse_rate"] = "mean"
    """`inverse_rate` divides by the probability of being masked: the bound of masked diffusion."""
    offset_decay: float = 0.0
    """A token k positions into its block weighs exp(-(k - 1) / this); 0 weighs all alike. Drafts are used
    from the left."""

    def __post_init__(self) -> None:
        if not 0 <= self.teacher <= 1:
            raise ConfigError(f"objective.teacher: {self.teacher} is not allowed; allowed: 0 to 1.")
        for name in ("denoise", "next_token", "total_variation", "certainty", "offset_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"objective.{name}: {getattr(self, name)} is not allowed; allowed: 0 or more."
                )
        if self.certainty_temperature <= 0:
            raise ConfigError("objective.certainty_temperature must be above 0.")


@dataclass(frozen=True, slots=True)
class Targets:
    """Which positions of a batch are scored, all [B, L]; `select` turns them into rows."""

    weight_BL: Tensor
    """0 where a position is not scored."""
    taught_BL: Tensor
    """bool: the next-token stream may teach here."""
    shift: bool


@dataclass(frozen=True, slots=True)
class Scored:
    """Scored rows: flat index of the predicting hidden state, label, weight, whether it is taught."""

    row_R: Tensor
    label_R: Tensor
    weight_R: Tensor
    taught_R: Tensor


def maskable(batch: TokenBatch, block_BL: Tensor, *, anchored: bool) -> Tensor:
    """bool [B, L]: positions that noise may hide: those with a weight and, when `anchored`, not the first of
    a block (at inference that one is the last settled token)."""
    allowed_BL = batch.weight_BL > 0
    return allowed_BL & ~_first_of_block(block_BL) if anchored else allowed_BL


def targets(
    config: ObjectiveConfig,
    batch: TokenBatch,
    block_BL: Tensor,
    noisy: tuple[Draw, Tensor],
    *,
    shift: bool,
) -> Targets:
    """Scores the masked and the replaced positions; `noisy` is the draw and which ids were (or will be)
    replaced, by other tokens or by the denoiser's own.

    With `shift`, row i - 1 predicts token i, so a block's first token is nobody's (the clean row before it
    gives it). Padding of an answer behind its EOS counts as one token in the block that holds the EOS, and
    not at all in later blocks: no block starts behind an EOS.
    """
    drawn, replaced_BL = noisy
    scored_BL = drawn.masked_BL | replaced_BL
    first_BL = _first_of_block(block_BL)
    if shift:
        scored_BL = scored_BL & ~first_BL
    weight_BL = batch.weight_BL * _fill_share(batch, block_BL) * scored_BL
    if config.weighting == "inverse_rate":
        weight_BL = weight_BL / drawn.rate_BL
    if config.offset_decay:
        inside_BL = index_in_block(block_BL)
        weight_BL = weight_BL * torch.exp(-(inside_BL - 1).clamp(min=0) / config.offset_decay)
    taught_BL = ~_visible_to_the_right(~drawn.masked_BL, block_BL) & ~batch.fill_BL
    # Of a document's first token no row before it knows anything.
    return Targets(weight_BL, taught_BL & (batch.position_BL > 0), shift)


def select(targets: Targets, ids_BL: Tensor) -> Scored:
    """The scored rows of (a part of) a batch, in order; labels come from the clean ids."""
    at_R = targets.weight_BL.reshape(-1).nonzero()[:, 0]
    return Scored(
        row_R=at_R - int(targets.shift),
        label_R=ids_BL.reshape(-1)[at_R],
        weight_R=targets.weight_BL.reshape(-1)[at_R],
        taught_R=targets.taught_BL.reshape(-1)[at_R],
    )


def losses(
    config: ObjectiveConfig, logits_RV: Tensor, scored: Scored, teacher_logits_RV: Tensor | None
) -> Tensor:
    """Unweighted loss of every scored row, fp32 [R]; the teacher, if any, gets no gradient.

    The batch's loss is sum(weight x loss) / sum(weight) with the sums over the *whole* optimiser batch: only
    then is the gradient the same however the batch is split.
    """
    logprob_RV = F.log_softmax(logits_RV.float(), -1)
    loss_R = F.nll_loss(logprob_RV, scored.label_R, reduction="none")
    if teacher_logits_RV is not None and (config.teacher or config.total_variation):
        teacher_RV = F.log_softmax(teacher_logits_RV.detach().float(), -1)
        mixed_R = loss_R
        if config.teacher:
            kl_R = F.kl_div(logprob_RV, teacher_RV, reduction="none", log_target=True).sum(-1)
            mixed_R = (1 - config.teacher) * loss_R + config.teacher * kl_R
        if config.total_variation:
            far_R = (logprob_RV.exp() - teacher_RV.exp()).abs().sum(-1) / 2
            mixed_R = mixed_R + config.total_variation * far_R
        loss_R = torch.where(scored.taught_R, mixed_R, loss_R)
    if config.certainty:
        sharp_RV = F.log_softmax(logits_RV.float() / config.certainty_temperature, -1)
        entropy_R = -(sharp_RV.exp() * sharp_RV).sum(-1)
        right_R = logits_RV.argmax(-1) == scored.label_R
        loss_R = loss_R + config.certainty * torch.where(right_R, entropy_R, 0.0)
    return loss_R


def next_token_weight(batch: TokenBatch, block_BL: Tensor, context: Context) -> Tensor:
    """float32 [B, L]: weight of each token as the label of the clean row before it in its document.

    Fill behind an end is left out. Rows that see their whole block (`context` block) know the tokens in it:
    only the first of the next one is left to guess; with `full` none is.
    """
    weight_BL = batch.weight_BL * ~batch.fill_BL
    weight_BL[:, 1:] *= batch.document_BL[:, 1:] == batch.document_BL[:, :-1]
    weight_BL[:, 0] = 0
    if context == "block":
        weight_BL = weight_BL * _first_of_block(block_BL)
    return weight_BL * (context != "full")


def index_in_block(block_BL: Tensor) -> Tensor:
    """Index, from 0, of every position in its block."""
    at_L = torch.arange(block_BL.shape[1], device=block_BL.device)
    return at_L - torch.where(_first_of_block(block_BL), at_L, 0).cummax(1).values


def _first_of_block(block_BL: Tensor) -> Tensor:
    first_BL = torch.ones_like(block_BL, dtype=torch.bool)
    first_BL[:, 1:] = block_BL[:, 1:] != block_BL[:, :-1]
    return first_BL


def _per_block(value_BL: Tensor, block_BL: Tensor) -> Tensor:
    """The block's sum at each of its positions."""
    return torch.zeros_like(value_BL).scatter_add_(1, block_BL, value_BL).gather(1, block_BL)


def _fill_share(batch: TokenBatch, block_BL: Tensor) -> Tensor:
    fill_BL = batch.fill_BL.float()
    num_fill_BL = _per_block(fill_BL, block_BL)
    own_BL = _per_block((~batch.fill_BL).float(), block_BL) > 0
    return torch.where(batch.fill_BL, own_BL / num_fill_BL.clamp(min=1), 1.0)


def _visible_to_the_right(visible_BL: Tensor, block_BL: Tensor) -> Tensor:
    at_BL = torch.arange(block_BL.shape[1], device=block_BL.device).expand_as(block_BL)
    seen_BL = torch.where(visible_BL, at_BL, -1)
    last_BK = torch.full_like(block_BL, -1).scatter_reduce_(1, block_BL, seen_BL, "amax")
    return last_BK.gather(1, block_BL) > at_BL
