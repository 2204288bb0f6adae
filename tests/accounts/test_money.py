"""Prices and sums are exact; what cannot be exact is refused."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vermilion.accounts.money import Price, cents, charge, dollars, per_token, picodollars, written
from vermilion.errors import BadParameter
from vermilion.types import Usage

DEFAULT = Price(1, "*", 0, 250_000, 25_000, 1_000_000)
counts = st.integers(0, 10**7)


def test_the_default_price_is_a_quarter_a_fortieth_and_a_dollar_per_million() -> None:
    million = Usage(prompt_tokens=2_000_000, cached_tokens=1_000_000, completion_tokens=1_000_000)
    cost = charge(million, 0, DEFAULT)
    assert dollars(cost.amount) == Decimal("1.275")
    assert (per_token("input", "0.25"), per_token("cached", "0.025"), per_token("output", "1")) == (
        DEFAULT.input,
        DEFAULT.cached_input,
        DEFAULT.output,
    )


@given(counts, counts, counts, counts, st.tuples(*[st.integers(0, 10**12)] * 3))
def test_a_charge_is_what_fractions_say(
    fresh: int, cached: int, output: int, free: int, rates: tuple[int, int, int]
) -> None:
    price = Price(1, "m", 0, *rates)
    cost = charge(Usage(fresh + cached, cached, output), free, price)
    left = free
    slow = Fraction(0)
    for number, rate in ((cached, rates[1]), (fresh, rates[0]), (output, rates[2])):
        covered = min(number, left)
        left -= covered
        slow += Fraction(number - covered) * Fraction(rate, 10**12)
    assert Fraction(dollars(cost.amount)) == slow
    assert cost.input + cost.cached + cost.output == max(0, fresh + cached + output - free)


@given(st.integers(0, 10**18))
def test_dollars_are_written_without_losing_a_digit(amount: int) -> None:
    assert picodollars("x", written(amount)) == amount
    assert "E" not in written(amount)


def test_cents_round_halves_up() -> None:
    assert [str(cents(picodollars("x", text))) for text in ("0.005", "0.0049", "2", "1.115")] == [
        "0.01",
        "0.00",
        "2.00",
        "1.12",
    ]


@pytest.mark.parametrize("text", ["", "free", "-1", "NaN", "Infinity", "0.0000001", "1000001", "1e99"])
def test_prices_that_are_none_or_too_fine_are_refused(text: str) -> None:
    with pytest.raises(BadParameter, match="input"):
        per_token("input", text)
