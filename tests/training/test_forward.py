"""The training forward: what must not leak does not, to the bit, and it computes what inference computes."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch import Tensor

from tests import tiny
from vermilion.models.adapters import DENOISER, detach
from vermilion.models.attention import DenseAttention, Group
from vermilion.models.linear import AdapterRows
from vermilion.models.transformer import Rows, Transformer
from vermilion.training.forward import Forward, NoisyRows
from vermilion.training.masks import Context, Layout, dense, number_blocks

LENGTH, BLOCK = 20, 4


@dataclasses.dataclass(frozen=True)
class Text:
    """Two rows of two documents; every token of a row is another, so that gradients tell positions apart."""

    ids: Tensor
    noisy: NoisyRows
    position: Tensor
    layout: Layout


def text(context: Context = "causal", seed: int = 0) -> Text:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([2 + torch.randperm(90, generator=generator)[:LENGTH] for _ in range(2)])
    document = torch.tensor([[0] * 13 + [1] * 7, [0] * LENGTH])
    position = torch.tensor([[*range(13), *range(7)], [*range(LENGTH)]])
    block = number_blocks(document, position, BLOCK, torch.tensor([[0], [3]]))
    masked = torch.rand(2, LENGTH, generator=generator) < 0.6
    return Text(ids, NoisyRows(ids, masked), position, Layout(document, block, context))


def two_pass_logits(model: Transformer, one: Text) -> tuple[Tensor, Tensor]:
    forward = Forward(model)
    seen = forward.seen(one.layout)
    clean, past = forward.clean(one.ids, one.position, seen)
    noisy = forward.noisy(one.noisy, one.position, seen, past)
    return model.logits(clean.flatten(0, 1)), model.logits(noisy.flatten(0, 1))


def joint_logits(model: Transformer, one: Text) -> tuple[Tensor, Tensor]:
    both = Forward(model).joint(one.ids, one.noisy, one.position, dense(one.layout))
    return model.logits(both[0].flatten(0, 1)), model.logits(both[1].flatten(0, 1))


@pytest.mark.parametrize("context", ["causal", "block"])
def test_one_forward_and_two_passes_agree(context: Context) -> None:
    model, one = tiny.model("causal-shift"), text(context)
    for ours, theirs in zip(two_pass_logits(model, one), joint_logits(model, one), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("way", [two_pass_logits, joint_logits])
@pytest.mark.parametrize("context", ["causal", "block"])
def test_a_changed_token_changes_no_row_that_must_not_see_it(way, context: Context) -> None:  # type: ignore[no-untyped-def]
    model, one = tiny.model("causal-shift"), text(context)
    before = way(model, one)
    block, document = one.layout.block_BL[0], one.layout.document_BL[0]
    for j in range(LENGTH):
        ids = one.ids.clone()
        ids[0, j] = 95
        # Clean token j: blind are the noisy rows of its own and earlier blocks and of the other document.
        after = way(model, dataclasses.replace(one, ids=ids))
        blind = (block <= block[j]) | (document != document[j])
        same = (after[1] == before[1]).view(2, LENGTH, -1).all(-1)
        assert same[0][blind].all() and same[1].all()
        earlier = torch.arange(LENGTH) < j if context == "causal" else block < block[j]
        unseen = earlier | (document != document[j])
        assert (after[0] == before[0]).view(2, LENGTH, -1).all(-1)[0][unseen].all()
        # Noisy token j: only its own block may notice, and the clean stream never.
        masked = one.noisy.masked_BL.clone()
        masked[0, j] = ~masked[0, j]
        after = way(model, dataclasses.replace(one, noisy=NoisyRows(one.ids, masked)))
        changed = (after[1] != before[1]).view(2, LENGTH, -1).any(-1)
        assert torch.equal(after[0], before[0])
        assert changed[0][block == block[j]].all() and not changed[0][block != block[j]].any()
        assert not changed[1].any()


def test_no_gradient_flows_from_a_row_to_what_it_must_not_see() -> None:
    model, one = tiny.model("causal-shift"), text()
    model.requires_grad_(True)
    visible = dense(one.layout)[0]
    closed = visible
    for _ in range(5):
        closed = closed | (closed.double() @ closed.double() > 0)
    nothing_masked = NoisyRows(one.ids, torch.zeros_like(one.noisy.masked_BL))
    for row in range(LENGTH):
        # Not the logits: the head reads the embedding too.
        hidden = Forward(model).joint(one.ids, nothing_masked, one.position, dense(one.layout))[1]
        (gradient,) = torch.autograd.grad(hidden[0, row].sum(), [model.embedding.weight])
        reached = gradient[one.ids[0]].abs().sum(-1) > 0
        sees = closed[LENGTH + row]
        assert torch.equal(reached, sees[:LENGTH] | sees[LENGTH:])


def test_clean_rows_ignore_the_adapter_and_equal_the_base() -> None:
    model, one = tiny.model("causal-shift"), text()
    with_adapter, _ = two_pass_logits(model, one)
    detach(model, DENOISER)
    assert torch.equal(two_pass_logits(model, one)[0], with_adapter)


def test_packed_documents_equal_documents_alone() -> None:
    model, one = tiny.model("causal-shift"), text()
    _, packed = two_pass_logits(model, one)
    part = slice(13, LENGTH)
    alone = Text(
        one.ids[:1, part],
        NoisyRows(one.ids[:1, part], one.noisy.masked_BL[:1, part]),
        one.position[:1, part],
        Layout(
            one.layout.document_BL[:1, part],
            number_blocks(
                one.layout.document_BL[:1, part], one.position[:1, part], BLOCK, torch.tensor([[0]])
            ),
            "causal",
        ),
    )
    _, single = two_pass_logits(model, alone)
    torch.testing.assert_close(packed.view(2, LENGTH, -1)[0, part], single, rtol=0, atol=1e-10)


def test_a_block_in_training_equals_a_canvas_in_inference() -> None:
    model, one = tiny.model("causal-shift"), text()
    clean_rows, noisy = two_pass_logits(model, one)
    block = one.layout.block_BL[1]
    for number in range(1, int(block.max()) + 1):
        at = (block == number).nonzero()[:, 0]
        start, end = int(at[0]), int(at[-1]) + 1
        where = torch.arange(end)
        clean = where < start
        visible = torch.where(clean[:, None], clean & (where[None] <= where[:, None]), True)
        pool = model.new_pool(end)
        bias = torch.zeros(end, end, dtype=pool.dtype).masked_fill(~visible, float("-inf")).repeat(2, 1)
        masked = torch.where(clean, False, one.noisy.masked_BL[1, :end])
        attention = DenseAttention(model.architecture.num_heads, pool)
        attend = partial(attention.attend, [Group(None, slice(0, end), bias[None])])
        adapters = [AdapterRows(DENOISER, start, end)]
        rows = Rows(one.ids[1, :end], where, masked, where, attend, adapters)
        with torch.inference_mode():
            expected = model.logits(model(rows, pool))
        ours = torch.cat([clean_rows.view(2, LENGTH, -1)[1, :start], noisy.view(2, LENGTH, -1)[1, start:end]])
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def test_recomputed_activations_give_the_same_gradients() -> None:
    model, one = tiny.model("causal-shift"), text()
    gradients = []
    denoiser = next(model.products())[0].adapters[DENOISER]
    for recompute in (False, True):
        forward = Forward(model, recompute=recompute)
        with torch.no_grad():
            _, past = forward.clean(one.ids, one.position, forward.seen(one.layout))
        hidden = forward.noisy(one.noisy, one.position, forward.seen(one.layout), past)
        gradients.append(torch.autograd.grad(hidden.square().sum(), [denoiser.a]))
    assert torch.equal(gradients[0][0], gradients[1][0])


def test_the_adapter_trains_as_it_infers() -> None:
    linear, _ = next(tiny.model("causal-shift").products())
    x = torch.randn(9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for num_clean in (0, 4, 9):
        rows = [AdapterRows(DENOISER, num_clean, 9)]
        with torch.no_grad():
            expected = linear(x, rows)
        torch.testing.assert_close(linear(x, rows), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("context", ["causal", "block", "full"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_computes_what_dense_masks_do(context: Context) -> None:
    model, one = tiny.model("causal-shift"), text(context)
    found = []
    model.requires_grad_(False)  # on a CPU FlexAttention goes forward only
    for flex in (False, True):
        forward = Forward(model, flex=flex)
        seen = forward.seen(one.layout)
        clean, past = forward.clean(one.ids, one.position, seen)
        noisy = forward.noisy(one.noisy, one.position, seen, None if context == "full" else past)
        found.append((clean, noisy))
    for dense_rows, flex_rows in zip(*found, strict=True):
        torch.testing.assert_close(flex_rows, dense_rows, rtol=0, atol=1e-9)


def test_a_blocks_answer_does_not_depend_on_the_text_it_is_to_give() -> None:
    """Blocks of one token, all masked, aligned: no token from a block's start on may move its logits."""
    model, one = tiny.model("causal-shift"), text()
    block = torch.arange(LENGTH).expand(2, -1)
    one = dataclasses.replace(
        one,
        noisy=NoisyRows(one.ids, torch.ones_like(one.noisy.masked_BL)),
        layout=Layout(torch.zeros_like(block), block, "causal"),
        position=block,
    )
    before = two_pass_logits(model, one)[1].view(2, LENGTH, -1)
    for j in range(LENGTH):
        ids = one.ids.clone()
        ids[:, j:] = 95 - ids[:, j:]
        changed = dataclasses.replace(one, ids=ids, noisy=NoisyRows(ids, one.noisy.masked_BL))
        after = two_pass_logits(model, changed)[1].view(2, LENGTH, -1)
        assert torch.equal(after[:, : j + 1], before[:, : j + 1])
        if j + 1 < LENGTH:
            assert not torch.equal(after[:, j + 1], before[:, j + 1])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_layers_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    model, one = tiny.model("causal-shift"), text()
    denoiser = next(model.products())[0].adapters[DENOISER]
    found = []
    for compiled in (False, True):
        forward = Forward(model, compiled=compiled)
        seen = forward.seen(one.layout)
        _, past = forward.clean(one.ids, one.position, seen)
        hidden = forward.noisy(one.noisy, one.position, seen, past)
        found.append([hidden, *torch.autograd.grad(hidden.square().sum(), [denoiser.a, *denoiser.b])])  # type: ignore[list-item,misc]
    for plain, traced in zip(*found, strict=True):
        torch.testing.assert_close(traced, plain, rtol=1e-9, atol=1e-12)
