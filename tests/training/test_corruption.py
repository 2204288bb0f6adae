"""Draws of noise: their shares, their bounds, and that a seed is all they depend on."""

from __future__ import annotations

import pytest
import torch

from vermilion.errors import ConfigError
from vermilion.training.corruption import (
    CorruptionConfig,
    Draw,
    complement,
    draw,
    fill_masks,
    noise,
    on_policy_rows,
    replace_visible,
)

NUM_ROWS, BLOCK, NUM_BLOCKS = 500, 8, 4
BLOCKS = (torch.arange(BLOCK * NUM_BLOCKS) // BLOCK).expand(NUM_ROWS, -1).contiguous()
EVERYTHING = torch.ones_like(BLOCKS, dtype=torch.bool)


def only(kind: str, **settings: float) -> CorruptionConfig:
    shares = {"full": 0.0, "prefix": 0.0, "random": 0.0, kind: 1.0}
    return CorruptionConfig(**{**shares, **settings})  # type: ignore[arg-type]


def drawn(config: CorruptionConfig, maskable: torch.Tensor = EVERYTHING, seed: int = 0) -> Draw:
    return draw(config, BLOCKS, maskable, BLOCK, noise(seed, 0))


def by_block(one: Draw) -> torch.Tensor:
    return one.masked_BL.view(NUM_ROWS, NUM_BLOCKS, BLOCK)


def test_full_masks_everything_that_may_be_masked() -> None:
    assert drawn(only("full")).masked_BL.all()
    maskable = torch.rand(BLOCKS.shape, generator=noise(1, 1)) < 0.5
    assert torch.equal(drawn(only("full"), maskable).masked_BL, maskable)


def test_prefix_masks_an_end_of_every_length_alike() -> None:
    masked = by_block(drawn(only("prefix")))
    assert (masked[..., 1:] >= masked[..., :-1]).all()
    lengths = masked.sum(-1).flatten().bincount(minlength=BLOCK + 1)
    assert lengths[0] == 0
    # Stratified: every length from 1 to 8 takes its eighth of the 2,000 blocks almost exactly.
    assert (lengths[1:] - NUM_ROWS * NUM_BLOCKS / BLOCK).abs().max() <= 2


def test_random_masks_at_least_one_and_every_position_alike() -> None:
    masked = by_block(drawn(only("random", lowest_rate=0.0)))
    assert masked.any(-1).all()
    shares = masked.float().mean((0, 1))
    assert (shares - shares.mean()).abs().max() < 0.04
    assert abs(float(shares.mean()) - 0.5) < 0.03


def test_lowest_rate_bounds_what_is_masked() -> None:
    one = drawn(only("random", lowest_rate=0.6))
    assert by_block(one).sum(-1).min() >= 0.6 * BLOCK - 0.5
    assert abs(float(one.masked_BL.float().mean()) - 0.8) < 0.02


def test_fixed_masks_the_same_number_everywhere() -> None:
    assert (by_block(drawn(only("fixed", fixed_rate=0.75))).sum(-1) == 6).all()


def test_position_prefers_the_end_of_a_block_unless_all_is_masked() -> None:
    shares = by_block(drawn(only("position", lowest_rate=0.0))).float().mean((0, 1))
    assert (shares[1:] > shares[:-1]).all()
    assert shares[-1] > shares[0] + 0.3


def test_linear_is_an_unbiased_estimate_under_its_weight() -> None:
    one = drawn(only("linear"))
    assert abs(float(one.masked_BL.float().mean()) - 0.5) < 0.03
    # E[masked / t] = 1 for every token: what makes the weighted loss a bound on the likelihood.
    weights = one.masked_BL / one.rate_BL
    assert abs(float(weights.mean()) - 1) < 0.06
    assert bool((by_block(one).sum(-1) == 0).any())


def test_shares_of_kinds_are_kept() -> None:
    config = CorruptionConfig(full=1, prefix=0, random=0, fixed=3, fixed_rate=0.5)
    full = (by_block(drawn(config)).sum(-1) == BLOCK).float().mean()
    assert abs(float(full) - 0.25) < 0.04


def test_a_complement_masks_the_rest() -> None:
    maskable = torch.rand(BLOCKS.shape, generator=noise(2, 2)) < 0.7
    first = drawn(CorruptionConfig(), maskable)
    second = complement(first, maskable)
    assert torch.equal(first.masked_BL | second.masked_BL, maskable)
    assert not (first.masked_BL & second.masked_BL).any()


def test_nothing_is_masked_where_nothing_may_be() -> None:
    for kind in ("full", "prefix", "random", "position", "fixed", "linear", "span"):
        assert not drawn(only(kind), torch.zeros_like(EVERYTHING)).masked_BL.any()


def test_wrong_tokens_are_wrong_and_uniform() -> None:
    ids = torch.full((200, 100), 3)
    changed, chosen = replace_visible(ids, torch.ones_like(ids, dtype=torch.bool), 0.4, 8, noise(0, 0))
    assert abs(float(chosen.float().mean()) - 0.4) < 0.02
    assert torch.equal(changed != ids, chosen)
    counts = changed[chosen].bincount(minlength=8)
    assert counts[3] == 0 and counts[[0, 1, 2, 4, 5, 6, 7]].min() > 0.8 * counts.sum() / 7


def test_the_seed_and_the_step_decide_the_noise() -> None:
    first = drawn(CorruptionConfig(), seed=5)
    assert torch.equal(first.masked_BL, drawn(CorruptionConfig(), seed=5).masked_BL)
    assert not torch.equal(first.masked_BL, drawn(CorruptionConfig(), seed=6).masked_BL)
    assert noise(5, 1).initial_seed() != noise(5, 2).initial_seed()


@pytest.mark.parametrize("settings", [{"full": -1.0}, {"lowest_rate": 1.5}, {"position_bias": 0.0}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        CorruptionConfig(**settings)  # type: ignore[arg-type]


def test_span_masks_a_run_that_lies_anywhere_with_equal_chance() -> None:
    masked = by_block(drawn(only("span", lowest_rate=0.0)))
    edges = (masked[..., 1:] != masked[..., :-1]).sum(-1) + masked[..., 0].int() + masked[..., -1].int()
    assert (edges == 2).all(), "one run, which begins and ends once"
    three = masked[masked.sum(-1) == 3]
    starts = three.int().argmax(-1).bincount(minlength=6).float()
    assert starts.min() > 0.6 * starts.mean() and len(starts) == 6
    seen_right = (~masked[..., -1]).float().mean()
    assert seen_right > 0.3


def test_span_skips_what_may_not_be_masked() -> None:
    maskable = torch.rand(BLOCKS.shape, generator=noise(3, 3)) < 0.6
    one = drawn(only("span", lowest_rate=0.2), maskable)
    assert not (one.masked_BL & ~maskable).any()
    for row, allowed in zip(by_block(one).flatten(0, 1), maskable.view(-1, BLOCK), strict=True):
        taken = row[allowed].int()
        assert not len(taken) or (taken.diff().abs().sum() + taken[0] + taken[-1]) == 2


def test_the_denoisers_own_tokens_take_the_masks_places_in_its_rows_alone() -> None:
    ids, predicted = torch.arange(6).view(2, 3), 10 + torch.arange(6).view(2, 3)
    masked = torch.tensor([[True, False, True], [True, True, False]])
    filled, left = fill_masks(ids, masked, torch.tensor([[True], [False]]), predicted)
    assert filled.tolist() == [[10, 1, 12], [3, 4, 5]]
    assert left.tolist() == [[False] * 3, [True, True, False]]
    assert abs(float(on_policy_rows(0.3, 4000, noise(0, 1)).float().mean()) - 0.3) < 0.03
    assert not on_policy_rows(0.0, 100, noise(0, 1)).any() and on_policy_rows(1.0, 100, noise(0, 1)).all()
