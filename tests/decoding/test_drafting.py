"""What drafts are worth, against their price."""

from __future__ import annotations

from itertools import accumulate

import pytest

from vermilion.decoding.drafting import (
    DraftBudget,
    RowCosts,
    gain_of,
    worthwhile,
    worthwhile_guesses,
)

CURVE = RowCosts((1, 4, 8, 16), (4.0, 4.6, 8.0, 14.0), noisy_row_ms=0.1)
FREE = RowCosts((1, 512), (4.0, 4.0))


def test_the_curve_is_interpolated_and_goes_on() -> None:
    assert CURVE.at(1) == 4.0
    assert CURVE.at(6) == pytest.approx(6.3)
    assert CURVE.at(24) == pytest.approx(20.0)
    assert CURVE.at(0) == 4.0


def test_noise_never_makes_more_rows_cheaper() -> None:
    measured = RowCosts((1, 2, 4), (4.0, 3.7, 5.0), -0.2)
    assert [measured.at(rows) for rows in (1, 2, 3, 4)] == [4.0, 4.0, 4.5, 5.0]
    assert measured.noisy_row_ms == 0.0


def test_a_price_is_what_the_step_would_settle_in_that_time() -> None:
    assert DraftBudget(CURVE, rows=4, streams=4).cost(4) == pytest.approx(4 * 3.4 / 4.6)
    assert DraftBudget(CURVE, rows=1, streams=1).cost(3, noisy=2) == pytest.approx(0.8 / 4.0)


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_no_other_number_of_drafts_gains_more(rows: int) -> None:
    budget = DraftBudget(CURVE, rows, streams=1)
    chances = [0.9, 0.6, 0.5, 0.2, 0.1, 0.05]
    gains = [sum(chances[:n]) - budget.cost(n) for n in range(len(chances) + 1)]
    count = worthwhile(chances, budget)
    assert gains[count] == max(gains)
    assert gain_of(chances, budget) == pytest.approx(max(gains))


def test_a_busy_step_drafts_less() -> None:
    chances = [0.8, 0.64, 0.51, 0.41]
    counts = [worthwhile(chances, DraftBudget(CURVE, rows=n, streams=n)) for n in (1, 4, 16)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] >= 3 and counts[-1] == 0


def one_row_each(by_depth: list[float]) -> list[tuple[float, float]]:
    return [(expected, 1.0) for expected in by_depth]


def test_guesses_pay_for_both_passes() -> None:
    budget = DraftBudget(CURVE, rows=1, streams=1)
    good, poor = one_row_each([0.85, 0.6, 0.4, 0.2]), one_row_each([0.1, 0.01, 0.0, 0.0])
    assert worthwhile_guesses(good, budget, budget.denoiser_cost)[0] in (2, 3)
    assert worthwhile_guesses(poor, budget, budget.denoiser_cost) == (0, 0.0)
    free = DraftBudget(FREE, rows=1, streams=1)
    assert worthwhile_guesses(good, free, free.denoiser_cost) == (4, pytest.approx(2.05))
    assert worthwhile_guesses([], budget, budget.denoiser_cost) == (0, 0.0)


def test_positions_with_several_drafts_cost_several_rows() -> None:
    budget = DraftBudget(CURVE, rows=1, streams=1)
    asking = [0.05, 0.1, 0.15]
    yields = [(0.7, 1.5), (0.3, 1.0), (0.1, 0.5)]
    rows, expected = accumulate(taken for _, taken in yields), accumulate(one for one, _ in yields)
    gains = [e - budget.cost(r) - cost for e, r, cost in zip(expected, rows, asking, strict=True)]
    count, gain = worthwhile_guesses(yields, budget, lambda count: asking[count - 1])
    assert gains[count - 1] == max(gains) == pytest.approx(gain)


def test_nothing_is_drafted_beyond_ones_means() -> None:
    budget = DraftBudget(CURVE, rows=1, streams=1)
    yields = one_row_each([0.9, 0.85, 0.8, 0.7])
    for means in (0.0, 0.05, 0.2, 0.5, 1.0):
        count, _ = worthwhile_guesses(yields, budget, budget.drafter_cost, means)
        assert not count or budget.drafter_cost(count) + budget.cost(count) <= means
        drafts = budget.affordable(4, means)
        assert budget.cost(drafts) <= means and (drafts == 4 or budget.cost(drafts + 1) > means)
    assert worthwhile_guesses(yields, budget, budget.drafter_cost, 1.0)[0] == 4


def test_part_of_a_row_costs_its_part() -> None:
    assert CURVE.at(2.5) == pytest.approx((CURVE.at(2) + CURVE.at(3)) / 2)
    assert CURVE.at(16.5) == pytest.approx(14.375)
    assert CURVE.at(15.5) == pytest.approx(13.625)


@pytest.mark.parametrize("curve", [CURVE, FREE, RowCosts((1, 2, 8), (4.0, 4.0, 10.0))])
def test_most_rows_within_a_time(curve: RowCosts) -> None:
    for ms in (0.0, 4.0, 4.5, 8.0, 13.9, 14.0, 50.0):
        most = min(curve.within(ms), 10_000)
        assert most == max((rows for rows in range(1, 10_001) if curve.at(rows) <= ms), default=0), ms


def test_rows_of_prompts_cost_what_they_were_seen_to_cost() -> None:
    costs = RowCosts((1, 64), (4.0, 67.0))
    assert costs.within(40.0) == 37
    for _ in range(20):
        costs.note_reading(37, 160.0)  # a long prompt's rows look at four times as much
    assert costs.within(40.0) == 7
    assert costs.at(37) == 40.0, "drafts are priced as before"
    for _ in range(40):
        costs.note_reading(7, 10.0)
    assert costs.within(40.01) == 37


def test_the_curve_follows_what_steps_cost_and_not_how_fast_the_machine_is() -> None:
    costs = RowCosts((1, 4, 8), (4.0, 5.0, 6.0), noisy_row_ms=0.2)
    for _ in range(300):
        costs.note(1, 0, 8.0)
        costs.note(4, 0, 10.0)
    assert costs.at(4) / costs.at(1) == pytest.approx(1.25, rel=0.02), "all steps are twice as slow"
    for _ in range(300):
        costs.note(1, 0, 4.0)
        costs.note(4, 0, 8.0)
    assert costs.at(4) / costs.at(1) == pytest.approx(2.0, rel=0.05)
    before = costs.noisy_row_ms
    for _ in range(100):
        costs.note(1, 0, 4.0)
        costs.note(5, 4, 12.0)
    assert costs.noisy_row_ms > before


def test_one_interrupted_step_hardly_counts() -> None:
    costs = RowCosts((1, 4, 8), (4.0, 5.0, 6.0))
    costs.note(4, 0, 900.0)
    assert costs.at(4) < 5.3


def steps(costs: RowCosts, true: RowCosts, count: int) -> int:
    """Run so many steps of one row, or of three where drafts of a fair chance are worth it; how many were."""
    num_drafted = 0
    for _ in range(count):
        rows = 1 + worthwhile([0.6, 0.5], DraftBudget(costs, 1, 1))
        costs.note(rows, 0, true.at(rows))
        num_drafted += rows > 1
    return num_drafted


def test_rows_that_looked_dear_by_mistake_are_found_to_be_cheap() -> None:
    true, mistaken = ((4.0, 4.3, 4.6, 6.0), (4.0, 8.2, 9.0, 12.0))
    costs = RowCosts((1, 2, 4, 8), mistaken)
    assert DraftBudget(costs, 1, 1).hopeless
    steps(costs, RowCosts((1, 2, 4, 8), true), 600)
    assert steps(costs, RowCosts((1, 2, 4, 8), true), 100) == 100


def test_rows_that_are_dear_are_seldom_tried() -> None:
    costs, true = (RowCosts((1, 2, 4, 8), (4.0, 7.5, 11.0, 19.0)) for _ in range(2))
    assert 0 < steps(costs, true, 3000) < 60


def test_a_row_beside_prompts_costs_what_it_costs_elsewhere() -> None:
    """Else every draft would look cheap beside a long prompt, whose first text would wait for it."""
    costs = RowCosts((1, 256), (4.0, 106.0))
    alone, beside = DraftBudget(costs, 16, 16).cost(1), DraftBudget(costs, 200, 16).cost(1)
    assert beside == pytest.approx(alone)


def test_dear_masks_and_a_dear_drafter_stop_drafts_of_requests_with_a_grammar_alone() -> None:
    costs = RowCosts((1, 512), (4.0, 8.0), drafter_ms=(0.1, 0.01))
    free, held = (DraftBudget(costs, rows=1, streams=1).under(grammar) for grammar in (None, "a"))
    chances = [0.9, 0.8, 0.7]
    yields = one_row_each(chances)
    assert worthwhile(chances, held) == worthwhile(chances, free) == 3
    for _ in range(40):
        costs.note_asking(3, True, 12.0)
    assert worthwhile_guesses(yields, held, held.drafter_cost)[0] == 0 and worthwhile(chances, held) == 3
    assert worthwhile_guesses(yields, free, free.drafter_cost)[0] == 3
    for _ in range(40):
        costs.note_masks(2, 0.009)
    assert worthwhile(chances, held) == 0 and held.hopeless
    assert worthwhile(chances, free) == 3


def test_what_asking_the_drafter_costs_is_followed_per_row_and_stream() -> None:
    costs = RowCosts((1, 64), (4.0, 8.0), drafter_ms=(0.1, 0.2))
    for _ in range(60):
        costs.note_asking(4, False, 1.8)
    assert DraftBudget(costs, rows=2, streams=2).drafter_cost(4) == pytest.approx(
        2 * (1.0 / 2 + 0.8) / costs.at(2), rel=0.01
    )
    costs.note_asking(4, False, 900.0)
    assert costs.asking_ms[False] < 1.5, "an interruption hardly counts"
