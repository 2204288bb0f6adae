"""One linear layer: every kind computes x W^T + b, and adapters change the rows that name them alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vermilion.models.linear import LINEAR_KINDS, AdapterRows, Float8Linear, Int8Linear, Linear
from vermilion.models.lora import Lora, Pair

SIZES = (4, 3, 5)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def loaded(kind: str = "dense", *, bias: bool = True, dtype: torch.dtype = torch.float64) -> Linear:
    with torch.device("meta"):
        linear = LINEAR_KINDS[kind](6, SIZES, bias=bias)
    for part, size in enumerate(SIZES):
        linear.load_part(part, numbers(size, 6, seed=part, dtype=dtype))
    if bias:
        biases = [numbers(size, seed=10 + part, dtype=dtype) for part, size in enumerate(SIZES)]
        linear.load_bias(torch.cat(biases))
    return linear


def pairs(rank: int = 2) -> list[Pair | None]:
    return [
        (numbers(rank, 6, seed=20), numbers(4, rank, seed=21)),
        None,
        (numbers(rank, 6), numbers(5, rank)),
    ]


@pytest.mark.parametrize("kind", LINEAR_KINDS)
def test_all_parts_at_once_are_the_parts_one_by_one(kind: str) -> None:
    by_part = loaded(kind)
    with torch.device("meta"):
        whole = LINEAR_KINDS[kind](6, SIZES, bias=True)
    whole.load(torch.cat([numbers(size, 6, seed=part) for part, size in enumerate(SIZES)]))
    for part in range(len(SIZES)):
        assert torch.equal(whole.part_weight(part), by_part.part_weight(part))
    with pytest.raises(ValueError, match="Part 0"):
        whole.load(numbers(12, 5))


@pytest.mark.parametrize("kind", LINEAR_KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_kind_computes_the_product_of_its_parts(kind: str, dtype: torch.dtype) -> None:
    linear, x = loaded(kind, dtype=dtype), numbers(7, 6, seed=3, dtype=dtype)
    weight = torch.cat([linear.part_weight(part) for part in range(3)])
    bias = torch.cat([numbers(size, seed=10 + part, dtype=dtype) for part, size in enumerate(SIZES)])
    given = torch.cat([numbers(size, 6, seed=part) for part, size in enumerate(SIZES)])
    # int8 is off by half a step of 1 / 127 of the row's largest weight, float8 by half a step of its own.
    largest = given.abs().amax(1, keepdim=True)
    steps = {
        "dense": torch.zeros(1),
        "int8": largest / 127,
        "fp8": given.abs() / 8 + largest * 2.0**-9 / 448,
    }[kind]
    rounding = 2 * torch.finfo(dtype).eps * given.abs()
    assert ((weight.double() - given).abs() <= 0.51 * steps + 2 * rounding).all()
    with torch.inference_mode():
        got = linear(x)
        wanted = (x.double() @ weight.double().T + bias.double()).to(dtype)
        assert got.dtype == dtype == linear.part_weight(0).dtype
        rtol, atol = (0.03, 0.05) if dtype == torch.bfloat16 else (1e-5, 1e-5)
        torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)
        ids = torch.tensor([[0, 5], [11, 4]])
        torch.testing.assert_close(linear.rows(ids), weight[ids])


def test_nothing_is_allocated_before_it_is_loaded_and_no_part_twice() -> None:
    with torch.device("meta"):
        linear = Linear(6, (8,))
    assert linear.weight.is_meta
    weight = numbers(8, 6)
    linear.load_part(0, weight)
    assert linear.weight.data_ptr() == weight.data_ptr()
    quantised = loaded("int8")
    assert isinstance(quantised, Int8Linear) and quantised.stored.codes.dtype == torch.int8
    assert sum(p.nbytes for p in quantised.parameters() if p.dim() == 2) == 12 * 6


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("num_rows", [1, 3, 40])
def test_products_in_float8_are_those_of_rounded_rows(num_rows: int, device: str) -> None:
    """Of what is multiplied, row by row: no row's scale depends on the others'."""
    linear = Float8Linear(64, (32, 48), bias=True)
    for part, size in enumerate((32, 48)):
        linear.load_part(part, numbers(size, 64, seed=part, dtype=torch.bfloat16).to(device))
    linear.load_bias(numbers(80, seed=9, dtype=torch.bfloat16).to(device))
    x = (
        numbers(num_rows, 64, seed=3, dtype=torch.bfloat16)
        * torch.logspace(-3, 3, num_rows)[:, None].bfloat16()
    )
    scale = x.float().abs().amax(1, keepdim=True) / 448
    rounded = (x.float() / scale).to(torch.float8_e4m3fn).float() * scale
    weight = torch.cat([linear.part_weight(part) for part in range(2)])
    with torch.inference_mode():
        got = linear(x.to(device))
        wanted = rounded.to(device) @ linear.stored.codes.float().T * linear.stored.scale.float()
        assert got.dtype == torch.bfloat16 and weight.shape == (80, 64)
        torch.testing.assert_close(got.float(), wanted + linear.bias.float(), rtol=0.02, atol=0.02)
        # Rounding costs a product of random numbers 4 % of its spread.
        exact = x.to(device).float() @ weight.float().T
        assert (wanted - exact).norm() < 0.05 * exact.norm()


def test_a_weight_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Part 1 .* \[3, 6\], in the checkpoint \[4, 6\]"):
        loaded().load_part(1, numbers(4, 6))


@pytest.mark.parametrize("kind", LINEAR_KINDS)
@pytest.mark.parametrize("num_rows", [9, 50])
@pytest.mark.parametrize("grad", [False, True])
def test_rows_go_through_the_adapters_that_they_name(kind: str, num_rows: int, grad: bool) -> None:
    linear, other = loaded(kind), loaded(kind)
    for part, size in enumerate(SIZES):
        other.load_part(part, numbers(size, 6, seed=40 + part))
    linear.adapters["added"] = Lora(SIZES, pairs(), 0.7)
    linear.adapters["more"] = Lora(SIZES, [None, (numbers(1, 6), numbers(3, 1)), None], 2.0)
    linear.adapters["instead"] = other
    x = numbers(num_rows, 6, seed=5)
    rows = [("more", 2, 9), ("instead", 6, 8), ("added", 1, 7), ("instead", 3, 4), ("unknown", 0, 9)]
    with torch.set_grad_enabled(grad):
        got = linear(x, [AdapterRows(*each) for each in rows])
    weight, replaced = (torch.cat([one.part_weight(p) for p in range(3)]) for one in (linear, other))
    (a, b), _, (c, d) = linear.adapters["added"].pairs()  # type: ignore[operator,misc]
    added = 0.7 * torch.cat([b @ a, torch.zeros(3, 6), d @ c])
    more = torch.zeros_like(added)
    more[4:7] = 2.0 * numbers(3, 1) @ numbers(1, 6)
    for n in range(num_rows):
        own = replaced if n in (3, 6, 7) else weight
        whole = own + added * (1 <= n < 7) + more * (2 <= n < 9)
        torch.testing.assert_close(got[n], whole @ x[n] + linear.bias)


@pytest.mark.parametrize("rows", [slice(0, 8), slice(3, 6)])
def test_a_lora_has_the_gradients_of_the_plain_formula(rows: slice) -> None:
    linear, x = loaded().requires_grad_(False), numbers(8, 6, seed=9).requires_grad_()
    lora = linear.adapters["new"] = Lora(SIZES, pairs(), 0.7)

    def plain() -> Tensor:
        first, last = (lora.a * 0.7).chunk(2)
        within = torch.zeros(8, 1, dtype=x.dtype)
        within[rows] = 1
        parts = [x @ first.t() @ lora.b[0].t(), x.new_zeros(8, 3), x @ last.t() @ lora.b[1].t()]
        return linear(x) + within * torch.cat(parts, 1)

    ours = linear(x, [AdapterRows("new", rows.start, rows.stop)])
    torch.testing.assert_close(ours, plain())
    wanted = [x, lora.a, *lora.b]
    both = (torch.autograd.grad(y.square().sum(), wanted) for y in (ours, plain()))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other)


def test_a_folded_scale_changes_neither_sums_nor_pairs() -> None:
    folded, apart = (Lora(SIZES, pairs(), 0.7, folded=folded) for folded in (True, False))
    x = numbers(5, 6, seed=1)
    sums = [one(torch.zeros(5, 12, dtype=x.dtype), x, slice(0, 5)) for one in (folded, apart)]
    torch.testing.assert_close(*sums)
    torch.testing.assert_close(folded.pairs(), apart.pairs())
    torch.testing.assert_close(apart.pairs(), pairs())


def test_an_adapter_in_autocast_is_added_in_bfloat16() -> None:
    linear = loaded(dtype=torch.float32)
    linear.adapters["new"] = Lora(SIZES, pairs(), 1.0).float()
    for grad in (False, True):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
            assert linear(torch.ones(9, 6), [AdapterRows("new", 0, 9)]).dtype == torch.bfloat16


def test_a_compiled_adapter_computes_the_same() -> None:
    linear = loaded()
    linear.adapters["new"] = Lora(SIZES, pairs(), 0.7)
    x, rows = numbers(8, 6, seed=9), [AdapterRows("new", 2, 8)]
    compiled = torch.compile(linear, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, rows), linear(x, rows))
