"""The loss of a drafter's rows equals its definition, written out slowly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.engine import drafted
from vermilion.models.drafter import Drafter
from vermilion.training import drafter_run
from vermilion.training.base_states import batches, states_of, text_of
from vermilion.training.drafter_loss import DrafterLoss, Frozen, OwnText, anchors_of, block_states, guess


def test_the_loss_is_its_definition() -> None:
    base = drafted.model().double()
    drafter = base.drafter
    assert drafter is not None
    frozen = Frozen.of(base, drafter.vocabulary_W)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, base.architecture.vocab_size, (160,), generator=generator).tolist()
    text = text_of(base, ids, 8, drafter.shape.taps)
    anchors_A = anchors_of(text, 4, drafter.shape.block_length, generator)
    config = DrafterLoss(candidates=5)
    found = guess(drafter, frozen, text, anchors_A, config)
    loss, accepted = slowly(drafter, frozen, text, anchors_A, config)
    torch.testing.assert_close(found.loss.double(), torch.tensor(loss).double(), rtol=1e-5, atol=0)
    assert found.accepted_AK.flatten().tolist() == accepted and any(accepted)


def test_nothing_is_made_on_another_device_than_the_models() -> None:
    """Tensors on `meta` refuse to be mixed with those of the CPU."""
    base = drafted.model().float()
    drafter, meta = base.drafter, torch.device("meta")
    assert drafter is not None
    [states] = states_of(base, [list(range(60))], drafter.shape.taps)
    text = OwnText(torch.arange(60), states[:, :-1], states[:, -1], 8)
    anchors_A = anchors_of(text, 4, drafter.shape.block_length, torch.Generator().manual_seed(3))
    base.to(meta)
    assert states_of(base, [[1, 2, 3], [4]], drafter.shape.taps)[1].shape == (1, 3, 32)
    frozen = Frozen.of(base, drafter.vocabulary_W)
    found = guess(drafter, frozen, text.to(meta), anchors_A, DrafterLoss(candidates=5))
    found.loss.backward()  # type: ignore[no-untyped-call]
    assert found.loss.is_meta and found.accepted_AK.is_meta and found.weight > 0
    assert all(value.grad is not None and value.grad.is_meta for value in drafter.parameters())


def test_states_of_several_texts_are_those_of_each() -> None:
    base = drafted.model()
    generator = torch.Generator().manual_seed(4)
    texts = [torch.randint(0, 90, (size,), generator=generator).tolist() for size in (5, 31, 17)]
    assert list(batches(texts, 40)) == [[0, 2], [1]] and list(batches(texts, 9)) == [[0], [2], [1]]
    together = states_of(base, texts, (1, 2))
    torch.testing.assert_close(drafter_run._states_in_batches(base, (1, 2), texts), together)
    for ids, found in zip(texts, together, strict=True):
        torch.testing.assert_close(found, states_of(base, [ids], (1, 2))[0])


@torch.no_grad()
def slowly(
    drafter: Drafter, frozen: Frozen, text: OwnText, anchors_A: Tensor, config: DrafterLoss
) -> tuple[float, list[bool]]:
    """Row by row, over lists of tokens."""
    length, total, accepted = drafter.shape.block_length, 0.0, []
    hidden_RH = block_states(drafter, frozen, text, anchors_A, anchors_A[:, None] + torch.arange(length))
    for row, hidden_H in enumerate(hidden_RH):
        offset = row % length
        at = int(anchors_A[row // length]) + offset
        label = int(frozen.inverse_V[text.ids_L[at + 1]])
        logits_W = frozen.head_WH @ hidden_H
        teacher_W = frozen.head_WH @ text.last_LH[at]
        near = logits_W.topk(config.candidates).indices.tolist()
        named = sorted({*near, *teacher_W.topk(4).indices.tolist(), max(label, 0)})
        before_H = frozen.embedding.rows(text.ids_L[at : at + 1])
        moved_W = frozen.head_WH @ (hidden_H + drafter.head(hidden_H[None], before_H)[0])
        shares = dict(zip(named, moved_W[named].softmax(-1).tolist(), strict=True))
        wanted = teacher_W.softmax(-1).tolist()
        part = config.total_variation * 0.5 * sum(abs(shares[c] - wanted[c]) for c in named)
        plain = 0.0
        if label >= 0:
            part -= (1 - config.total_variation) * math.log(shares[label])
            plain = -float(logits_W.log_softmax(-1)[label])
        weight = math.exp(-offset / config.offset_decay)
        total += weight * ((1 - config.following) * plain + config.following * part)
        chosen = max(near, key=lambda c: float(moved_W[c]))
        accepted.append(label >= 0 and chosen == int(teacher_W.argmax()))
    return total, accepted
