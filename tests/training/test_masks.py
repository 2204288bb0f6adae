"""Who may look at whom: one table in three forms, held to its sentence and to what must never leak."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vermilion.training.masks import Context, Layout, dense, mask_mod, number_blocks, two_pass

CONTEXTS: tuple[Context, ...] = ("causal", "block", "full")
LENGTH = 12


def layout(context: Context, block_length: int = 4, shift: int = 0) -> Layout:
    """Two rows: documents of 7 and 5 tokens; one of 10 and two of padding."""
    document = torch.tensor([[0] * 7 + [1] * 5, [0] * 10 + [-1] * 2])
    position = torch.tensor([[*range(7), *range(5)], [*range(10), *range(2)]])
    block = number_blocks(document, position, block_length, torch.tensor([[shift], [shift]]))
    return Layout(document, block, context)


def stated(one: Layout, row: int, query: int, key: int) -> bool:
    """The docstring's table, read aloud."""
    i, j = query % LENGTH, key % LENGTH
    document, block = one.document_BL[row].tolist(), one.block_BL[row].tolist()
    if document[i] != document[j]:
        return False
    match query >= LENGTH, key >= LENGTH:
        case False, False:
            return {"causal": j <= i, "block": block[j] <= block[i], "full": True}[one.context]
        case False, True:
            return False
        case True, False:
            return one.context != "full" and block[j] < block[i]
        case _:
            return one.context == "full" or block[j] == block[i]


LAYOUTS = [
    layout(context, length, shift)
    for context in CONTEXTS
    for length, shift in ((1, 0), (3, 2), (4, 0), (4, 3), (16, 5))
]


@pytest.mark.parametrize("one", LAYOUTS, ids=lambda one: f"{one.context}-{int(one.block_BL.max())}")
def test_three_forms_say_what_the_table_says(one: Layout) -> None:
    expected = torch.tensor(
        [[[stated(one, b, q, k) for k in range(2 * LENGTH)] for q in range(2 * LENGTH)] for b in range(2)]
    )
    assert torch.equal(dense(one), expected)
    clean, noisy = two_pass(one)
    assert torch.equal(clean, expected[:, :LENGTH, :LENGTH])
    assert torch.equal(noisy, expected[:, LENGTH:])
    assert not expected[:, :LENGTH, LENGTH:].any()
    visible = mask_mod(one)
    n = torch.tensor
    pointwise = [
        bool(visible(n(b), n(0), n(q), n(k)))
        for b in range(2)
        for q in range(2 * LENGTH)
        for k in range(2 * LENGTH)
    ]
    assert pointwise == expected.flatten().tolist()


def test_flex_attention_takes_the_mask() -> None:
    from torch.nn.attention.flex_attention import create_mask

    one = layout("causal", 4, 1)
    made = create_mask(mask_mod(one), 2, 1, 2 * LENGTH, 2 * LENGTH, device="cpu")
    assert torch.equal(made[:, 0], dense(one))


def reach(visible: Tensor) -> Tensor:
    """What a row depends on through any number of layers."""
    closed = visible
    for _ in range(6):
        closed = closed | ((closed.float() @ closed.float()) > 0)
    return closed


@pytest.mark.parametrize("context", ["causal", "block"])
@pytest.mark.parametrize(("length", "shift"), [(1, 0), (4, 0), (4, 3), (5, 2)])
def test_no_number_of_layers_leads_to_the_answer(context: Context, length: int, shift: int) -> None:
    one = layout(context, length, shift)
    closed = reach(dense(one))
    same_document = one.document_BL[:, :, None] == one.document_BL[:, None, :]
    later = one.block_BL[:, None, :] >= one.block_BL[:, :, None]
    other = one.block_BL[:, None, :] != one.block_BL[:, :, None]
    assert not (closed[:, LENGTH:, :LENGTH] & later).any(), "a clean token of its own or a later block"
    assert not (closed[:, LENGTH:, LENGTH:] & other).any(), "another block's noise"
    assert not (closed & ~same_document.repeat(1, 2, 2)).any(), "another document"
    assert not closed[:, :LENGTH, LENGTH:].any(), "noise in the clean stream"


def test_blocks_start_anew_in_every_document_and_never_span_two() -> None:
    assert layout("causal", 4, 0).block_BL.tolist() == [
        [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3],
        [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3],
    ]
    assert layout("causal", 4, 3).block_BL.tolist()[0] == [0, 1, 1, 1, 1, 2, 2, 3, 4, 4, 4, 4]
