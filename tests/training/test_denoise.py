"""One batch through the model: what the denoiser is shown and asked for in each kind of row."""

from __future__ import annotations

from pathlib import Path

import torch

from tests import tiny
from vermilion.data.packing import TokenBatch
from vermilion.training.corruption import CorruptionConfig, noise
from vermilion.training.denoise import add_noise, ask, loss_of
from vermilion.training.forward import Forward, NoisyRows
from vermilion.training.objectives import ObjectiveConfig
from vermilion.training.recipe import Recipe

LENGTH = 16


def batch(num_rows: int = 4) -> TokenBatch:
    ids = 2 + torch.randint(0, 90, (num_rows, LENGTH), generator=torch.Generator().manual_seed(0))
    position = torch.arange(LENGTH).expand(num_rows, -1)
    weight = torch.ones(num_rows, LENGTH)
    weight[:, :3] = 0
    return TokenBatch(ids, torch.zeros_like(ids), position, weight, torch.zeros_like(ids, dtype=torch.bool))


def recipe(**changes: object) -> Recipe:
    settings = {"objective": ObjectiveConfig(teacher=0.0), **changes}
    return Recipe("base", Path("out"), steps=1, **settings)  # type: ignore[arg-type]


class Watched(Forward):
    """Keeps what the denoiser was shown."""

    def noisy(self, rows, *others):  # type: ignore[no-untyped-def]
        self.shown = [*getattr(self, "shown", []), rows]
        return super().noisy(rows, *others)


def test_on_policy_rows_show_the_denoisers_own_tokens_and_score_every_token_it_may_have_written() -> None:
    model = tiny.model("causal-shift")
    one = recipe(corruption=CorruptionConfig(on_policy=1.0))
    made = add_noise(one, batch(), 4, tiny.VOCAB, noise(0, 0))
    copy = made.copies[0]
    forward = Watched(model)
    (opinions,) = ask(forward, one, made)
    masked, filled = forward.shown
    assert masked.masked_BL.any() and not filled.masked_BL.any()
    with torch.no_grad():
        seen = forward.seen(_layout(made))
        _, past = forward.clean(made.batch.ids_BL, made.batch.position_BL, seen)
        hidden = Forward(model).noisy(copy.rows, made.batch.position_BL, seen, past)
        own = model.logits(hidden.flatten(0, 1)).argmax(-1).view(hidden.shape[:2])
    expected = made.batch.ids_BL.clone()
    for row, position in copy.rows.masked_BL.nonzero().tolist():
        expected[row, position] = own[row, position - 1]
    assert torch.equal(filled.ids_BL, expected)
    first = torch.ones_like(made.block_BL, dtype=torch.bool)
    first[:, 1:] = made.block_BL[:, 1:] != made.block_BL[:, :-1]
    assert len(opinions.loss_R) == int(((made.batch.weight_BL > 0) & ~first).sum())
    assert not copy.targets.taught_BL.any(), "the teacher knows nothing of the guesses to the right"


def _layout(made):  # type: ignore[no-untyped-def]
    from vermilion.training.masks import Layout

    return Layout(made.batch.document_BL, made.block_BL, "causal")


def test_without_a_share_no_row_is_on_policy_and_half_of_them_leaves_the_others_alone() -> None:
    forward = Watched(tiny.model("causal-shift"))
    list(ask(forward, recipe(), add_noise(recipe(), batch(), 4, tiny.VOCAB, noise(0, 0))))
    assert len(forward.shown) == 1
    half = recipe(corruption=CorruptionConfig(on_policy=0.5))
    made = add_noise(half, batch(16), 4, tiny.VOCAB, noise(0, 0))
    forward.shown = []
    list(ask(forward, half, made))
    own = made.copies[0].own_B1[:, 0]
    assert 0 < int(own.sum()) < 16
    assert not forward.shown[1].masked_BL[own].any()
    assert torch.equal(forward.shown[1].masked_BL[~own], made.copies[0].rows.masked_BL[~own])
    assert torch.equal(forward.shown[1].ids_BL[~own], made.batch.ids_BL[~own])


def test_the_aligned_teacher_is_the_clean_row_before_the_token() -> None:
    model = tiny.model("causal-shift")
    found = {}
    for shift in (True, False):
        one = recipe(shift=shift, objective=ObjectiveConfig(teacher=0.5))
        made = add_noise(one, batch(), 4, tiny.VOCAB, noise(0, 0))
        (opinions,) = ask(Forward(model), one, made)
        assert opinions.base_logits_RV is not None
        at = opinions.scored.row_R + int(shift)
        found[shift] = dict(zip(at.tolist(), opinions.base_logits_RV, strict=True))
    both = found[True].keys() & found[False].keys()
    assert len(both) > 10
    assert all(torch.equal(found[True][i], found[False][i]) for i in both)


def test_the_loss_is_the_weighted_mean_of_each_stream() -> None:
    model = tiny.model("causal-shift")
    one = recipe(method="tied", objective=ObjectiveConfig(denoise=0.3, next_token=2.0, teacher=0.0))
    made = add_noise(one, batch(), 4, tiny.VOCAB, noise(0, 0))
    clean, noisy = ask(Forward(model), one, made)
    assert not clean.noisy and noisy.noisy
    total = sum(float(loss_of(one, each, made.weights).detach()) for each in (clean, noisy))
    expected = 2.0 * float(clean.loss_R.detach().mean()) + 0.3 * float(noisy.loss_R.detach().mean())
    assert abs(total - expected) < 1e-5
    with torch.no_grad():
        seen = Forward(model).seen(_layout(made))
        hidden, _ = Forward(model).clean(made.batch.ids_BL, made.batch.position_BL, seen)
        logprob = model.logits(hidden.flatten(0, 1)).log_softmax(-1).view(4, LENGTH, -1)
    by_hand = [-logprob[b, i - 1, made.batch.ids_BL[b, i]] for b in range(4) for i in range(3, LENGTH)]
    torch.testing.assert_close(clean.loss_R.detach().double(), torch.stack(by_hand), rtol=1e-5, atol=1e-5)


def test_blocks_on_a_grid_hide_their_first_token_too() -> None:
    one = recipe(method="tied", context="block", corruption=CorruptionConfig(full=1, prefix=0, random=0))
    made = add_noise(one, batch(), 4, tiny.VOCAB, noise(0, 0))
    assert (made.block_BL[0] == torch.arange(LENGTH) // 4).all()
    assert made.copies[0].rows.masked_BL[:, [4, 8, 12]].all()
    assert not made.copies[0].targets.weight_BL[:, [4, 8, 12]].any(), "the clean row before gives it"
    assert isinstance(made.copies[0].rows, NoisyRows)
