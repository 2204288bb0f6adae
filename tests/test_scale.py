"""The capacity model and its simulation: held to what can be computed by hand, and to the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bench.scale import __main__ as scale
from bench.scale import capacity
from bench.scale.fleet import ROUTES, Fleet, Scaling
from bench.scale.replicas import Costs, Replica, Served, Sizes
from bench.scale.traces import Call, Traffic, calls, constant, day

COSTS = Costs((1, 11), (10.0, 30.0), 1.0)
ROOMY = Sizes(cached_tokens=1_000_000)
PAGE = (Path(__file__).parent.parent / "docs" / "SCALE.md").read_text(encoding="utf-8")


def call(at_s: float = 0.0, session: int = 0, prompt: int = 100, answer: int = 11) -> Call:
    return Call(at_s, session, 0, 40, prompt, answer)


def test_one_request_takes_its_prompt_and_its_passes() -> None:
    replica, served = Replica(0, COSTS, ROOMY), Served(call())
    assert replica.add(served)
    replica.advance(10)
    # The prompt alone fills every pass; then ten passes of 10 ms for the tokens behind the first.
    assert served.first_s == pytest.approx(0.1) and served.end_s == pytest.approx(0.2)
    assert replica.busy_s == pytest.approx(0.2)


def test_streams_share_passes_and_a_prompt_slows_them_to_the_pause() -> None:
    replica = Replica(0, COSTS, ROOMY)
    both = [Served(call(session=i, prompt=1, answer=101)) for i in range(2)]
    for one in both:
        replica.add(one)
    replica.advance(0.5)
    third = Served(call(0.5, 2, prompt=592, answer=1))
    replica.add(third)
    replica.advance(10)
    # Passes of two take 12 ms, which leaves 28 of 40 ms to a prompt: 20 passes of 40 ms for the 560 tokens
    # behind the two pages of instructions that the others have left.
    assert third.end_s == pytest.approx(0.5 + 20 * 0.040)
    # The two have 100 passes to go, 20 of them slow.
    assert both[1].end_s == pytest.approx(0.002 + 0.040 * 20 + 0.012 * 80, rel=0.05)


def test_a_conversation_finds_what_was_said_until_the_room_is_needed() -> None:
    replica = Replica(0, COSTS, replace(ROOMY, cached_tokens=600))
    first, again = Served(call(prompt=200, answer=40)), Served(call(5.0, prompt=300, answer=8))
    other = Served(call(10.0, session=1, prompt=480, answer=8))
    late = Served(call(20.0, prompt=400, answer=8))
    for one in (first, again, other, late):
        replica.advance(one.call.at_s)
        replica.add(one)
    replica.advance(60)
    assert first.hit_tokens == 0 and again.hit_tokens == 240 // 16 * 16
    # What was put away for the other is gone; its instructions are the same ones.
    assert other.hit_tokens == 32 and late.hit_tokens == 32


def test_a_request_too_many_is_refused() -> None:
    replica = Replica(0, COSTS, replace(ROOMY, max_running=1, max_waiting=1))
    assert [replica.add(Served(call(session=i))) for i in range(3)] == [True, True, False]


@pytest.mark.parametrize("route", ROUTES)
def test_every_call_is_answered_once_and_never_before_its_work_is_done(route: str) -> None:
    trace = calls(Traffic(), constant(2.0), 2.0, 120, 4)
    outcome = Fleet(COSTS, ROOMY, Scaling(3, 3), 4).run(trace, route)
    assert [each.call for each in outcome.answered] == trace
    for each in outcome.answered:
        read_s = 1e-3 * (each.call.prompt_tokens - each.hit_tokens)
        assert each.first_s - each.call.at_s >= read_s - 1e-9
        assert each.end_s - each.first_s >= 0.010 * (each.call.answer_tokens - 1) - 1e-9


def test_traces_follow_from_their_seed_and_their_load() -> None:
    made = calls(Traffic(), day(0.2), 0.2, 86_400, 1)
    assert made == calls(Traffic(), day(0.2), 0.2, 86_400, 1) != calls(Traffic(), day(0.2), 0.2, 86_400, 2)
    noon = sum(36_000 < each.at_s < 50_400 for each in made)
    night = sum(each.at_s < 14_400 for each in made)
    assert noon > 2.5 * night
    assert len({each.session for each in made}) == pytest.approx(0.2 * 0.575 * 86_400, rel=0.05)


def test_a_fleet_grows_with_its_load_and_shrinks_behind_it() -> None:
    busy = calls(Traffic(), lambda at_s: 3.0 if at_s < 300 else 0.02, 3.0, 3600, 1)
    outcome = Fleet(COSTS, ROOMY, Scaling(1, 6, target=4.0, start_s=10), 1).run(busy, "least queue")
    sizes = dict(outcome.sizes)
    assert sizes[0.0] == 1 and max(sizes.values()) == 6 and sizes[3600 - 15] == 1
    assert all(each.end_s >= 0 or each.refused for each in outcome.served)


@pytest.mark.parametrize("table", [capacity.users_table, capacity.cost_table])
def test_the_page_has_the_tables_that_the_rows_give(table: object) -> None:
    assert table(scale.HITS) in PAGE  # type: ignore[operator]


def test_the_page_has_the_simulations_last_rows() -> None:
    rows = capacity.rows("scale")
    assert scale.routing_table(rows) in PAGE and scale.day_table(rows) in PAGE
