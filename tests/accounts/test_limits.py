"""Limits as arithmetic, and the decision whether a request may begin."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vermilion.accounts.admission import Load, Subject, admit
from vermilion.accounts.clock import MINUTE_US, SECOND_US, parsed_us
from vermilion.accounts.keys import Key, RateLimits
from vermilion.accounts.meters import Meter
from vermilion.accounts.refusals import AccountInactive, BudgetReached, InvalidKey, RateLimited
from vermilion.types import Usage

NOW = parsed_us("2026-01-31T23:59:30")
KEY = Key("k", "o", "", "", frozenset(("generate",)), 0, None, None, RateLimits())
PARTY = Subject(KEY, "free", False, RateLimits())
LOAD = Load(
    Meter("k", month="2026-01"), Meter("o", granted_tokens=100, used_tokens=99, month="2026-01"), 0, 0
)


def with_limits(key: RateLimits = KEY.limits, organisation: RateLimits = PARTY.limits) -> Subject:
    return replace(PARTY, key=replace(KEY, limits=key), limits=organisation)


def test_one_free_token_left_lets_a_request_in_and_none_lets_none_in() -> None:
    load, _ = admit(PARTY, LOAD, 50, NOW)
    assert (load.running_key, load.running_organisation) == (1, 1)
    used_up = replace(LOAD, organisation=replace(LOAD.organisation, used_tokens=100))
    with pytest.raises(AccountInactive, match="free tokens are used up"):
        admit(PARTY, used_up, 50, NOW)
    admit(replace(PARTY, plan="paid"), used_up, 50, NOW)


@pytest.mark.parametrize("field", ["revoked_at_us", "expires_at_us"])
def test_a_key_is_refused_from_the_moment_it_is_revoked_or_expires(field: str) -> None:
    subject = replace(PARTY, key=replace(KEY, **{field: NOW}))
    with pytest.raises(InvalidKey):
        admit(subject, LOAD, 1, NOW)
    if field == "expires_at_us":
        admit(subject, LOAD, 1, NOW - 1)


def test_a_disabled_organisation_is_inactive() -> None:
    with pytest.raises(AccountInactive, match="disabled"):
        admit(replace(PARTY, disabled=True), LOAD, 1, NOW)


@pytest.mark.parametrize("of", ["key", "organisation"])
def test_requests_at_once_and_the_budget_hold_for_the_key_and_for_its_organisation(of: str) -> None:
    subject = with_limits(**{of: RateLimits(concurrency=2)})
    load, _ = admit(subject, LOAD, 1, NOW)
    load, _ = admit(subject, load, 1, NOW)
    with pytest.raises(RateLimited, match="2 requests at once") as refused:
        admit(subject, load, 1, NOW)
    assert refused.value.retry_after_s == 1
    spent = replace(LOAD, **{of: replace(getattr(LOAD, of), month_spent=5)})
    with pytest.raises(BudgetReached):
        admit(with_limits(**{of: RateLimits(budget=5)}), spent, 1, NOW)
    admit(with_limits(**{of: RateLimits(budget=6)}), spent, 1, NOW)


def test_the_headers_tell_of_the_tighter_limit_with_the_request_counted() -> None:
    subject = with_limits(
        RateLimits(requests_per_minute=60, tokens_per_minute=1000), RateLimits(requests_per_minute=3)
    )
    _, left = admit(subject, LOAD, 100, NOW)
    assert left.requests is not None and left.tokens is not None
    assert (left.requests.limit, left.requests.remaining, left.requests.reset_s) == (3, 2, 20.0)
    assert (left.tokens.limit, left.tokens.remaining, left.tokens.reset_s) == (1000, 900, 6.0)


def test_a_refusal_says_after_how_many_seconds_the_request_fits() -> None:
    limits = RateLimits(requests_per_minute=2)
    subject, load, now = with_limits(limits), LOAD, NOW
    for _ in range(2):
        load, _ = admit(subject, replace(load, key=load.key.at(now, limits)), 1, now)
    with pytest.raises(RateLimited) as refused:
        admit(subject, replace(load, key=load.key.at(now, limits)), 1, now)
    wait = refused.value.retry_after_s
    assert wait == 30
    later = now + wait * SECOND_US
    admit(subject, replace(load, key=load.key.at(later, limits)), 1, later)
    with pytest.raises(RateLimited):
        admit(subject, replace(load, key=load.key.at(later - SECOND_US, limits)), 1, later - SECOND_US)


def test_a_prompt_larger_than_the_minutes_tokens_is_told_that_it_never_fits() -> None:
    with pytest.raises(RateLimited, match="this prompt alone has 11") as refused:
        admit(with_limits(RateLimits(tokens_per_minute=10)), LOAD, 11, NOW)
    assert refused.value.retry_after_s is None


@given(st.lists(st.tuples(st.integers(0, 30 * SECOND_US), st.integers(0, 40)), max_size=40))
def test_no_minute_passes_more_than_twice_its_limit(arrivals: list[tuple[int, int]]) -> None:
    """The bucket's promise: N at once and N more as it leaks, over any window of a minute."""
    limits = RateLimits(tokens_per_minute=100)
    subject, load, now = with_limits(limits), LOAD, NOW
    passed: list[tuple[int, int]] = []
    for gap_us, num_tokens in arrivals:
        now += gap_us
        load = replace(load, key=load.key.at(now, limits))
        try:
            load, _ = admit(subject, load, num_tokens, now)
        except RateLimited:
            continue
        passed.append((now, num_tokens))
    for start, _ in passed:
        inside = sum(number for at, number in passed if start <= at < start + MINUTE_US)
        assert inside <= 200


def test_settling_counts_the_answer_and_keeps_the_prompt_counted_once() -> None:
    limits = RateLimits(tokens_per_minute=1000)
    meter = Meter("k", at_us=NOW, month="2026-01").admitted(100).settled(Usage(100, 0, 30), 100, 7)
    assert (meter.tokens, meter.used_tokens, meter.month_spent) == (130, 130, 7)
    unanswered = Meter("k").admitted(100).settled(Usage(), 100, 0)
    assert (unanswered.tokens, unanswered.requests) == (0, 1)
    assert meter.at(NOW + MINUTE_US, limits).tokens == 0


def test_a_new_month_begins_with_its_whole_budget_and_a_clock_set_back_gives_none_away() -> None:
    meter = Meter("k", at_us=NOW, month="2026-01", month_spent=5, requests=3)
    february = meter.at(NOW + MINUTE_US, RateLimits())
    assert (february.month, february.month_spent) == ("2026-02", 0)
    back = meter.at(NOW - MINUTE_US, RateLimits(requests_per_minute=1))
    assert (back.month_spent, back.requests, back.at_us) == (5, 3, NOW)
