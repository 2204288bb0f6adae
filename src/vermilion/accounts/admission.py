"""Whether a request may begin: pure decisions over the rows that `transactions.py` reads and locks."""

from __future__ import annotations

from dataclasses import dataclass

from vermilion.accounts.keys import Key, RateLimits
from vermilion.accounts.meters import Meter, Standing, standing, wait_s
from vermilion.accounts.money import written
from vermilion.accounts.refusals import AccountInactive, BudgetReached, InvalidKey, RateLimited

FREE, PAID = "free", "paid"
PLANS = (FREE, PAID)
"""`free` lives on its grants and is refused when they are used up; `paid` is charged for what they do not
cover."""
_SOON_S = 1


@dataclass(frozen=True, slots=True)
class Subject:
    """A key with its organisation, as they are now."""

    key: Key
    plan: str
    disabled: bool
    limits: RateLimits
    """The organisation's."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a key and its organisation have used and have running."""

    key: Meter
    organisation: Meter
    running_key: int
    running_organisation: int


def admit(subject: Subject, load: Load, num_prompt_tokens: int, now_us: int) -> tuple[Load, Standing]:
    """The load with the request in it, and what is left. Raises the errors of `refusals.py`."""
    if not subject.key.good(now_us):
        raise InvalidKey("This API key is revoked or has expired.")
    if subject.disabled:
        raise AccountInactive("it is disabled. Ask whoever runs this service.")
    if subject.plan == FREE and not load.organisation.free_tokens:
        raise AccountInactive("its free tokens are used up. Ask whoever runs this service for more.")
    limited = (
        ("this API key", subject.key.limits, load.key, load.running_key),
        ("this organisation", subject.limits, load.organisation, load.running_organisation),
    )
    left = standing([(limits, meter) for _, limits, meter, _ in limited])
    for name, limits, meter, running in limited:
        _check(name, limits, meter, running, (num_prompt_tokens, left))
    key, organisation = load.key.admitted(num_prompt_tokens), load.organisation.admitted(num_prompt_tokens)
    left = standing([(subject.key.limits, key), (subject.limits, organisation)])
    return Load(key, organisation, load.running_key + 1, load.running_organisation + 1), left


def _check(name: str, limits: RateLimits, meter: Meter, running: int, asked: tuple[int, Standing]) -> None:
    num_prompt_tokens, left = asked
    if limits.budget is not None and meter.month_spent >= limits.budget:
        raise BudgetReached(f"The budget of {name}, ${written(limits.budget)} a month, is spent.")
    if limits.concurrency is not None and running >= limits.concurrency:
        message = f"Limit of {name} reached: {limits.concurrency} requests at once. Wait for one to end."
        raise RateLimited(message, _SOON_S, left)
    if limits.requests_per_minute is not None:
        seconds = wait_s(meter.requests, limits.requests_per_minute, 1)
        if seconds:
            message = f"Limit of {name} reached: {limits.requests_per_minute} requests a minute."
            raise RateLimited(f"{message} Try again in {seconds} s.", seconds, left)
    if limits.tokens_per_minute is not None:
        seconds = wait_s(meter.tokens, limits.tokens_per_minute, num_prompt_tokens)
        message = f"Limit of {name} reached: {limits.tokens_per_minute} tokens a minute"
        if seconds is None:
            raise RateLimited(f"{message}, and this prompt alone has {num_prompt_tokens}.", None, left)
        if seconds:
            raise RateLimited(f"{message}. Try again in {seconds} s.", seconds, left)
