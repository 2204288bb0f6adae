"""What is hidden from the denoiser: draws of masks, of wrong tokens and of its own, block by block.

Pure functions of a seeded CPU generator, so that a step's noise is the same on every device, after a resume
and however the batch is split. Shapes: B rows, L positions, K blocks of a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vermilion.errors import ConfigError

_KINDS = ("full", "prefix", "random", "position", "fixed", "linear", "span")
_LEAST_LINEAR_RATE = 1e-3
"""Bounds the weight 1/t."""


@dataclass(frozen=True, slots=True)
class CorruptionConfig:
    """How blocks are masked: the first seven are shares of blocks, relative to their sum.

    full      every token                              (a first draft; arXiv 2511.08923)
    prefix    all behind a visible beginning of random length       (a draft half verified)
    random    k of n tokens, k/n uniform from `lowest_rate` to 1      (infill, later passes)
    position  the same, later tokens likelier: log-weight beta (1 - t) i, beta = ln 2 / (bias x block length)
              (arXiv 2512.14067)
    fixed     `fixed_rate` of the tokens
    linear    each token alone with probability t, uniform from 0 to 1: the noise whose bound weighs a token
              by 1/t                                                  (arXiv 2406.07524)
    span      a run of k of n tokens anywhere, k/n as for random      (infill with its right side in sight)
    """

    full: float = 0.5
    prefix: float = 0.2
    random: float = 0.3
    position: float = 0.0
    fixed: float = 0.0
    linear: float = 0.0
    span: float = 0.0
    lowest_rate: float = 0.3
    fixed_rate: float = 0.5
    position_bias: float = 0.1
    complementary: bool = False
    """Denoise every row twice: as drawn, and with exactly the other tokens masked."""
    wrong_tokens: float = 0.0
    """Share of the visible tokens replaced by uniformly drawn ones that must be corrected."""
    on_policy: float = 0.0
    """Share of the rows in which the masks are filled with the denoiser's own likeliest tokens before it is
    asked: it must correct itself, so that every token there is scored (arXiv 2604.08302)."""

    def __post_init__(self) -> None:
        shares = [getattr(self, kind) for kind in _KINDS]
        if min(shares) < 0 or sum(shares) <= 0:
            raise ConfigError(f"corruption: the shares {', '.join(_KINDS)} must be 0 or more, not all 0.")
        for name in ("lowest_rate", "fixed_rate", "wrong_tokens", "on_policy"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"corruption.{name}: {getattr(self, name)} is not allowed; allowed: 0 to 1."
                )
        if self.position_bias <= 0:
            raise ConfigError(f"corruption.position_bias: {self.position_bias} must be above 0.")


@dataclass(frozen=True, slots=True)
class Draw:
    """One noisy copy of a batch."""

    masked_BL: Tensor
    """bool"""
    rate_BL: Tensor
    """Probability with which the position was masked, float32; 1 where nothing can be masked."""


def noise(seed: int, step: int) -> torch.Generator:
    """The generator of one optimiser step."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + 1) % (1 << 63)
    return torch.Generator().manual_seed(mixed)


def draw(
    config: CorruptionConfig, block_BL: Tensor, maskable_BL: Tensor, block_length: int, rng: torch.Generator
) -> Draw:
    """Masks for every block that has a maskable token; at least one in each, except for `linear`.

    `block_BL` counts blocks from 0 in each row; all tensors on the CPU.
    """
    num_rows, length = block_BL.shape
    num_blocks = int(block_BL.max()) + 1
    count_BK = torch.zeros(num_rows, num_blocks, dtype=torch.int64)
    count_BK.scatter_add_(1, block_BL, maskable_BL.long())
    shares = torch.tensor([getattr(config, kind) for kind in _KINDS], dtype=torch.float64)
    kind_BK = torch.multinomial(shares, count_BK.numel(), True, generator=rng).view_as(count_BK)
    unit_BK = _stratified(count_BK.numel(), rng).view_as(count_BK)
    rate_BK = config.lowest_rate + (1 - config.lowest_rate) * unit_BK
    wanted_BK = torch.where(kind_BK == _KINDS.index("fixed"), config.fixed_rate, rate_BK)
    num_BK = (wanted_BK * count_BK).round().long()
    num_BK = torch.where(kind_BK == _KINDS.index("prefix"), count_BK - (unit_BK * count_BK).long(), num_BK)
    num_BK = torch.where(kind_BK == _KINDS.index("full"), count_BK, num_BK)
    num_BK = torch.minimum(num_BK.clamp(min=1), count_BK)

    kind_BL, unit_BL = kind_BK.gather(1, block_BL), unit_BK.gather(1, block_BL)
    score_BL = torch.rand(num_rows, length, generator=rng, dtype=torch.float64)
    at_L = torch.arange(length)
    beta = math.log(2) / (config.position_bias * block_length)
    gumbel_BL = -torch.log(-torch.log(score_BL.clamp(1e-12, 1 - 1e-12)))
    inside_BL = at_L - _starts(block_BL)
    late_BL = torch.sigmoid(-(gumbel_BL + beta * (1 - rate_BK.gather(1, block_BL)) * inside_BL))
    order_BL = torch.where(kind_BL == _KINDS.index("position"), late_BL, score_BL)
    order_BL = torch.where(kind_BL == _KINDS.index("prefix"), 1 - (at_L + 1) / (length + 1), order_BL)
    turned_BL = _turned(maskable_BL, block_BL, count_BK - num_BK, score_BL)
    order_BL = torch.where(kind_BL == _KINDS.index("span"), turned_BL, order_BL)
    rank_BL = _rank_in_block(order_BL, block_BL, maskable_BL)
    masked_BL = rank_BL < num_BK.gather(1, block_BL)
    rate_BL = (num_BK / count_BK.clamp(min=1)).gather(1, block_BL)

    linear_BL = kind_BL == _KINDS.index("linear")
    time_BL = unit_BL.clamp(min=_LEAST_LINEAR_RATE)
    masked_BL = torch.where(linear_BL, score_BL < time_BL, masked_BL) & maskable_BL
    rate_BL = torch.where(linear_BL, time_BL, rate_BL)
    return Draw(masked_BL, torch.where(maskable_BL, rate_BL, 1.0).float())


def complement(first: Draw, maskable_BL: Tensor) -> Draw:
    """The draw that masks exactly the maskable tokens that `first` leaves visible."""
    rest_BL = (1 - first.rate_BL).clamp(min=_LEAST_LINEAR_RATE)
    return Draw(maskable_BL & ~first.masked_BL, torch.where(maskable_BL, rest_BL, 1.0))


def replace_visible(
    ids_BL: Tensor, replaceable_BL: Tensor, rate: float, vocab_size: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(ids, which changed): a share `rate` of the replaceable tokens becomes another, uniformly drawn."""
    chosen_BL = replaceable_BL & (torch.rand(ids_BL.shape, generator=rng) < rate)
    # Adding 1 to vocab_size - 1, modulo, reaches every token but the right one.
    shift_BL = torch.randint(1, vocab_size, ids_BL.shape, generator=rng)
    return torch.where(chosen_BL, (ids_BL + shift_BL) % vocab_size, ids_BL), chosen_BL


def on_policy_rows(share: float, num_rows: int, rng: torch.Generator) -> Tensor:
    """bool [B, 1]: which rows are to be filled by the denoiser itself."""
    return torch.rand(num_rows, 1, generator=rng) < share


def fill_masks(
    ids_BL: Tensor, masked_BL: Tensor, own_BL: Tensor, predicted_BL: Tensor
) -> tuple[Tensor, Tensor]:
    """(ids, masked) with the masked positions of `own_BL` shown as what the denoiser predicted for them."""
    filled_BL = masked_BL & own_BL
    return torch.where(filled_BL, predicted_BL, ids_BL), masked_BL & ~filled_BL


def _turned(maskable_BL: Tensor, block_BL: Tensor, spare_BK: Tensor, score_BL: Tensor) -> Tensor:
    """Scores in [0, 1) by which the lowest of a block are a run that starts anywhere it fits.

    `spare_BK`: maskable tokens of each block that stay visible; the run starts behind 0 to that many.
    """
    place_BL = _rank_in_block(torch.zeros_like(score_BL), block_BL, maskable_BL)
    first_BL = score_BL.gather(1, _starts(block_BL))
    start_BL = (first_BL * (spare_BK.gather(1, block_BL) + 1)).long()
    length = block_BL.shape[1]
    return ((place_BL - start_BL) % length) / length


def _stratified(count: int, rng: torch.Generator) -> Tensor:
    """`count` uniforms in [0, 1), one from each of `count` equal strata, shuffled: less spread in a batch."""
    inside = torch.rand(count, generator=rng, dtype=torch.float64)
    return (torch.randperm(count, generator=rng) + inside) / count


def _starts(block_BL: Tensor) -> Tensor:
    """Index in the row of the first position of each position's block."""
    at_L = torch.arange(block_BL.shape[1])
    first_BL = torch.ones_like(block_BL, dtype=torch.bool)
    first_BL[:, 1:] = block_BL[:, 1:] != block_BL[:, :-1]
    return torch.where(first_BL, at_L, 0).cummax(1).values


def _rank_in_block(score_BL: Tensor, block_BL: Tensor, maskable_BL: Tensor) -> Tensor:
    """Rank, from 0, of each score in [0, 1) among its block's maskable positions; others rank behind."""
    key_BL = 2 * block_BL + torch.where(maskable_BL, score_BL, 1.0)
    order_BL = key_BL.argsort(dim=1, stable=True)
    at_BL = torch.arange(block_BL.shape[1]).expand_as(order_BL)
    rank_BL = torch.empty_like(order_BL).scatter_(1, order_BL, at_BL)
    return rank_BL - _starts(block_BL)
