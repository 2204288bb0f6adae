"""Exact money: prices per token as whole picodollars, what a request costs, dollars for people."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation

from vermilion.errors import BadParameter
from vermilion.types import Usage

_PICO = -12
_MOST = Decimal(1_000_000)
"""Dollars per million tokens, and per month: keeps sums of years within 64 bits."""


@dataclass(frozen=True, slots=True)
class Price:
    """Picodollars per token, as set at `effective_at_us`."""

    id: int
    model: str
    effective_at_us: int
    input: int
    cached_input: int
    output: int


@dataclass(frozen=True, slots=True)
class Charge:
    """The tokens that no grant covers, and what they cost in picodollars."""

    input: int = 0
    cached: int = 0
    output: int = 0
    amount: int = 0


def dollars(picodollars: int) -> Decimal:
    """Exact, without an exponent or needless zeros: 250000 is 0.00000025."""
    value = Decimal(picodollars).scaleb(_PICO).normalize()
    return value if value.as_tuple().exponent <= 0 else value.quantize(Decimal(1))  # type: ignore[operator]


def written(picodollars: int) -> str:
    return f"{dollars(picodollars):f}"


def cents(picodollars: int) -> Decimal:
    """What is paid for it: whole cents, halves up."""
    return dollars(picodollars).quantize(Decimal("0.01"), ROUND_HALF_UP)


def per_token(name: str, dollars_per_million: str) -> int:
    """Picodollars per token. Raises `BadParameter` for what is no price, or too fine to be exact."""
    return _whole(name, dollars_per_million, 6, "dollars per million tokens")


def picodollars(name: str, amount: str) -> int:
    """Of an amount in dollars. Raises `BadParameter`."""
    return _whole(name, amount, 12, "dollars")


def _whole(name: str, text: str, places: int, unit: str) -> int:
    allowed = f"{unit} from 0 to {_MOST}, with at most {places} decimals"
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise BadParameter(name, text, allowed) from None
    if not value.is_finite() or not 0 <= value <= _MOST:
        raise BadParameter(name, text, allowed)
    scaled = value.scaleb(places)
    if scaled != scaled.to_integral_value():
        raise BadParameter(name, text, allowed)
    return int(scaled)


def charge(usage: Usage, num_free: int, price: Price) -> Charge:
    """What `usage` costs when a grant covers its first `num_free` tokens.

    A grant covers the dearest last: cached prompt tokens, then the rest of the prompt, then the answer.
    """
    cached, num_free = _cover(usage.cached_tokens, num_free)
    fresh, num_free = _cover(usage.prompt_tokens - usage.cached_tokens, num_free)
    output, num_free = _cover(usage.completion_tokens, num_free)
    amount = fresh * price.input + cached * price.cached_input + output * price.output
    return Charge(fresh, cached, output, amount)


def _cover(num_tokens: int, num_free: int) -> tuple[int, int]:
    covered = min(num_tokens, max(0, num_free))
    return num_tokens - covered, num_free - covered
