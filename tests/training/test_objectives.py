"""What is scored, by how much, against what."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vermilion.data.packing import TokenBatch
from vermilion.training import objectives
from vermilion.training.corruption import Draw
from vermilion.training.objectives import ObjectiveConfig, Scored

ids = torch.arange(10, 22)[None]
BLOCK = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]])


def batch(weight: list[float] | None = None, fill: list[int] | None = None) -> TokenBatch:
    return TokenBatch(
        ids,
        torch.zeros_like(ids),
        torch.arange(12)[None],
        torch.tensor([weight or [1.0] * 12]),
        torch.tensor([fill or [0] * 12]).bool(),
    )


def noisy(masked: str, rate: float = 0.5) -> tuple[Draw, torch.Tensor]:
    masked_BL = torch.tensor([[letter == "M" for letter in masked.replace(" ", "")]])
    return Draw(masked_BL, torch.full(masked_BL.shape, rate)), torch.zeros_like(masked_BL)


def weights(config: ObjectiveConfig, one: TokenBatch, masked: str, shift: bool) -> list[float]:
    made = objectives.targets(config, one, BLOCK, noisy(masked), shift=shift)
    return [round(float(w), 4) for w in made.weight_BL[0]]


def test_aligned_scores_every_mask_and_shifted_all_but_a_blocks_first() -> None:
    masked = "MM.. M..M ..MM"
    assert weights(ObjectiveConfig(), batch(), masked, shift=False) == [1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 1]
    assert weights(ObjectiveConfig(), batch(), masked, shift=True) == [0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1]


def test_the_predicting_row_is_the_one_before_only_when_shifted() -> None:
    for shift in (False, True):
        made = objectives.targets(ObjectiveConfig(), batch(), BLOCK, noisy(".M.. ..M. ...M"), shift=shift)
        scored = objectives.select(made, ids)
        assert scored.row_R.tolist() == [i - shift for i in (1, 6, 11)]
        assert scored.label_R.tolist() == [11, 16, 21]


def test_replaced_tokens_are_scored_too() -> None:
    drawn, replaced = noisy(".M.. .... ....")
    replaced[0, 6] = True
    made = objectives.targets(ObjectiveConfig(), batch(), BLOCK, (drawn, replaced), shift=True)
    assert made.weight_BL[0].nonzero()[:, 0].tolist() == [1, 6]
    assert not made.taught_BL[0, 1]


def test_the_teacher_speaks_only_where_nothing_to_the_right_is_visible() -> None:
    made = objectives.targets(ObjectiveConfig(), batch(), BLOCK, noisy(".MMM .M.M .MM."), shift=True)
    masked = noisy(".MMM .M.M .MM.")[0].masked_BL
    taught = (made.taught_BL & masked)[0].nonzero()[:, 0].tolist()
    assert taught == [1, 2, 3, 7]


def test_weights_follow_rate_and_offset() -> None:
    masked = ".MMM .MMM ...."
    assert weights(ObjectiveConfig(weighting="inverse_rate"), batch(), masked, True)[:4] == [0, 2, 2, 2]
    decayed = weights(ObjectiveConfig(offset_decay=2.0), batch(), masked, True)
    assert decayed[:4] == [0, 1, round(math.exp(-0.5), 4), round(math.exp(-1), 4)]
    assert decayed[4:8] == decayed[:4]


def test_fill_behind_an_end_counts_as_one_token_in_its_block_and_not_at_all_later() -> None:
    one = batch(fill=[0] * 5 + [1] * 7)
    assert weights(ObjectiveConfig(), one, ".MMM .MMM .MMM", True) == pytest.approx(
        [0, 1, 1, 1, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0, 0], abs=1e-4
    )
    made = objectives.targets(ObjectiveConfig(), one, BLOCK, noisy(".MMM .MMM .MMM"), shift=True)
    assert not made.taught_BL[0, 5:].any(), "the next-token stream knows nothing of what follows an end"


def test_prompts_and_a_blocks_anchor_are_never_hidden() -> None:
    one = batch(weight=[0.0] * 5 + [1.0] * 7)
    allowed = objectives.maskable(one, BLOCK, anchored=True)[0]
    assert allowed.tolist() == [False] * 5 + [True] * 3 + [False] + [True] * 3
    assert objectives.maskable(one, BLOCK, anchored=False)[0].tolist() == [False] * 5 + [True] * 7


def rows(taught: list[bool]) -> tuple[torch.Tensor, torch.Tensor, Scored]:
    generator = torch.Generator().manual_seed(0)
    count = len(taught)
    logits, teacher = (torch.randn(count, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    label = torch.randint(0, 9, (count,), generator=generator)
    scored = Scored(torch.arange(count), label, torch.ones(count), torch.tensor(taught))
    return logits.float(), teacher.float(), scored


def test_loss_is_cross_entropy_mixed_with_the_teacher_where_taught() -> None:
    logits, teacher, scored = rows([True, False])
    loss = objectives.losses(ObjectiveConfig(teacher=0.7), logits, scored, teacher)
    ce = F.cross_entropy(logits, scored.label_R, reduction="none")
    p, q = teacher.softmax(-1), logits.softmax(-1)
    kl = (p * (p.log() - q.log())).sum(-1)
    torch.testing.assert_close(loss, torch.stack([0.3 * ce[0] + 0.7 * kl[0], ce[1]]))
    same = objectives.losses(ObjectiveConfig(teacher=1.0), teacher, scored, teacher)
    assert abs(float(same[0])) < 1e-6


def test_the_teacher_gets_no_gradient() -> None:
    logits, teacher, scored = rows([True, True])
    teacher.requires_grad_(True)
    logits.requires_grad_(True)
    objectives.losses(ObjectiveConfig(), logits, scored, teacher).sum().backward()
    assert teacher.grad is None and logits.grad is not None


def test_certainty_is_asked_for_only_where_the_answer_is_right() -> None:
    logits, _, scored = rows([False] * 6)
    logits[torch.arange(3), scored.label_R[:3]] += 9
    logits[torch.arange(3, 6), (scored.label_R[3:] + 1) % 9] += 9
    plain = objectives.losses(ObjectiveConfig(), logits, scored, None)
    sharper = objectives.losses(ObjectiveConfig(certainty=2.0), logits, scored, None)
    sharp = (logits / 0.5).softmax(-1)
    entropy = -(sharp * sharp.log()).sum(-1)
    torch.testing.assert_close(sharper[:3], plain[:3] + 2 * entropy[:3])
    assert torch.equal(sharper[3:], plain[3:])


def test_next_token_loss_stays_in_its_document_and_off_the_prompt() -> None:
    one = TokenBatch(
        torch.tensor([[1, 2, 3, 4, 5, 6]]),
        torch.tensor([[0, 0, 0, 1, 1, -1]]),
        torch.tensor([[0, 1, 2, 0, 1, 0]]),
        torch.tensor([[0.0, 1, 1, 1, 1, 0]]),
        torch.tensor([[False, False, True, False, False, False]]),
    )
    block = torch.tensor([[0, 0, 1, 2, 2, 3]])
    assert objectives.next_token_weight(one, block, "causal").tolist() == [[0, 1, 0, 0, 1, 0]]


def test_rows_that_see_their_block_are_asked_for_the_next_blocks_first_token_alone() -> None:
    one = batch(weight=[0.0] * 2 + [1.0] * 10)
    assert objectives.next_token_weight(one, BLOCK, "causal")[0].tolist() == [0.0] * 2 + [1.0] * 10
    on_grid = objectives.next_token_weight(one, BLOCK, "block")[0]
    assert on_grid.nonzero()[:, 0].tolist() == [4, 8]
    assert not objectives.next_token_weight(one, BLOCK, "full").any()


def test_total_variation_is_half_the_distance_to_the_teacher_where_taught() -> None:
    logits, teacher, scored = rows([True, False])
    plain = objectives.losses(ObjectiveConfig(teacher=0.0), logits, scored, teacher)
    far = objectives.losses(ObjectiveConfig(teacher=0.0, total_variation=2.0), logits, scored, teacher)
    p, q = teacher.softmax(-1), logits.softmax(-1)
    # The probability that a draft from q is refused when p verifies it: 1 - sum of the smaller ones.
    refused = 1 - torch.minimum(p, q).sum(-1)
    torch.testing.assert_close(far - plain, torch.stack([2 * refused[0], torch.tensor(0.0)]))


def test_aligned_or_not_no_teacher_speaks_of_a_documents_first_token() -> None:
    made = objectives.targets(ObjectiveConfig(), batch(), BLOCK, noisy("MMMM MMMM MMMM"), shift=False)
    assert made.weight_BL.all() and made.taught_BL[0].tolist() == [False] + [True] * 11
