"""Settle rules and draft trees against their definitions, tried out by brute force."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vermilion.decoding.commit import (
    Level,
    Node,
    accepted_child,
    ancestors,
    draft_tree,
    likeliest_ends,
    reopen,
)
from vermilion.decoding.decoders import DECODERS, KNOBS, available, described, settle
from vermilion.decoding.passes import Reading
from vermilion.models.families import Traits
from vermilion.types import Decoding

# Few values, so that ties are common.
LOGPROBS = st.sampled_from([0.0, -0.05, -0.1, -0.5, -1.0, -1.0, -2.3, -7.0])
READINGS = st.lists(
    st.builds(Reading, st.integers(2, 9), LOGPROBS, st.sampled_from([0.0, 0.1, 0.4, 0.4, 1.5])),
    min_size=1,
    max_size=7,
)
FORCED = st.none() | st.builds(Reading, st.just(1), LOGPROBS, st.sampled_from([0.0, 0.3, 2.0]))
THRESHOLDS = st.sampled_from([0.0, 0.05, 0.37, 0.6, 0.9, 1.0])


def subsets(count: int) -> list[tuple[int, ...]]:
    return [s for size in range(count + 1) for s in itertools.combinations(range(count), size)]


def surest(readings: list[Reading]) -> tuple[int, ...]:
    best = max(reading.logprob for reading in readings)
    return (next(i for i, reading in enumerate(readings) if reading.logprob == best),)


@given(READINGS, FORCED, THRESHOLDS)
def test_threshold_takes_all_that_reach_it(
    readings: list[Reading], forced: Reading | None, threshold: float
) -> None:
    got = settle(Decoding("threshold", threshold=threshold), readings, forced, 9)
    wanted = tuple(i for i, r in enumerate(readings) if math.exp(r.logprob) >= threshold - 1e-12)
    assert got == (wanted or (() if forced else surest(readings)))


@given(READINGS, FORCED, st.sampled_from([0.001, 0.05, 0.37, 0.6, 0.9, 1.0]))
def test_cumulative_takes_as_many_as_keep_the_joint_probability(
    readings: list[Reading], forced: Reading | None, joint: float
) -> None:
    got = settle(Decoding("cumulative", threshold=joint), readings, forced, 9)
    first = forced.logprob if forced else 0.0
    fitting = [
        len(s)
        for s in subsets(len(readings))
        if first + math.fsum(readings[i].logprob for i in s) >= math.log(joint) - 1e-12 or not s
    ]
    wanted = max(fitting)
    if not wanted and not forced:
        assert got == surest(readings)
        return
    assert len(got) == wanted
    # No position left out is surer than one taken.
    out = [readings[i].logprob for i in range(len(readings)) if i not in got]
    assert not got or not out or min(readings[i].logprob for i in got) >= max(out)


@given(READINGS, FORCED, st.sampled_from([0.0, 0.15, 0.45, 1.05, 5.0]))
def test_entropy_takes_the_largest_set_within_the_bound(
    readings: list[Reading], forced: Reading | None, bound: float
) -> None:
    got = settle(Decoding("entropy", threshold=bound), readings, forced, 9)
    own = [forced.entropy] if forced else []

    def dependence(chosen: tuple[int, ...]) -> float:
        values = own + [readings[i].entropy for i in chosen]
        return sum(values) - max(values, default=0.0)

    # All prefixes by rising entropy; the rule stops at the first that is over the bound.
    order = sorted(range(len(readings)), key=lambda i: (readings[i].entropy, i))
    wanted: tuple[int, ...] = ()
    for count in range(1, len(order) + 1):
        if dependence(tuple(order[:count])) > bound + 1e-12:
            break
        wanted = tuple(sorted(order[:count]))
    assert got == wanted
    assert got or forced


@given(READINGS, st.booleans(), st.integers(1, 9))
def test_schedule_spreads_the_block_evenly_over_the_steps(
    readings: list[Reading], with_forced: bool, steps: int
) -> None:
    left, taken = list(readings), []
    forced = Reading(1, 0.0) if with_forced else None
    for step in range(steps):
        if not left:
            break
        got = settle(Decoding("schedule"), left, forced, steps - step)
        taken.append(len(got) + (forced is not None))
        out = [left[i].logprob for i in range(len(left)) if i not in got]
        assert not got or not out or min(left[i].logprob for i in got) >= max(out)
        left = [reading for i, reading in enumerate(left) if i not in got]
        forced = None
    assert not left
    assert max(taken) - min(taken) <= 1
    assert taken == sorted(taken, reverse=True)


@given(READINGS, FORCED, st.sampled_from(["threshold", "schedule", "entropy", "cumulative"]), THRESHOLDS)
def test_every_rule_advances_and_ends_in_time(
    readings: list[Reading], forced: Reading | None, name: str, threshold: float
) -> None:
    decoding = Decoding(name, threshold=threshold)
    assert settle(decoding, readings, forced, 1) == tuple(range(len(readings)))
    got = settle(decoding, readings, forced, 5)
    assert got == tuple(sorted(set(got))) and (got or forced)
    assert settle(decoding, [], forced, 5) == ()


@given(st.lists(LOGPROBS, max_size=6), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_reopen_lists_what_is_less_likely(base: list[float], below: float) -> None:
    assert reopen(base, below) == tuple(i for i, x in enumerate(base) if math.exp(x) < below - 1e-12)


LEVELS = st.lists(
    st.lists(st.floats(-4, 0), min_size=1, max_size=3).map(
        lambda values: list(zip(range(10, 20), sorted(values, reverse=True), strict=False))
    ),
    max_size=4,
)


CHOICES = st.lists(st.floats(-4, 0), min_size=1, max_size=3).map(
    lambda values: tuple(zip(range(3), sorted(values, reverse=True), strict=False))
)
"""Likeliest first."""


def paths(levels: list[list[tuple[int, float]]]) -> dict[tuple[int, ...], float]:
    """Every path through the levels and its joint log-probability."""
    every: dict[tuple[int, ...], float] = {}
    for depth in range(1, len(levels) + 1):
        for steps in itertools.product(*levels[:depth]):
            every[tuple(token for token, _ in steps)] = math.fsum(x for _, x in steps)
    return every


@given(LEVELS, st.integers(1, 9))
def test_the_tree_holds_the_likeliest_paths(levels: list[list[tuple[int, float]]], size: int) -> None:
    tree = draft_tree([Level(tuple(choices)) for choices in levels], size)
    every = paths(levels)
    drafted = {tuple(tree[i].token for i in ancestors(tree, end)): tree[end] for end in range(len(tree))}
    assert len(drafted) == len(tree) == min(size, len(every))
    for path, node in drafted.items():
        assert node.depth == len(path) - 1 and node.parent < tree.index(node)
        assert node.logprob == pytest.approx(every[path])
    # The expected number of accepted drafts is the sum of their chances: no other set has more.
    best = sorted(every.values(), reverse=True)[:size]
    assert math.fsum(math.exp(node.logprob) for node in tree) == pytest.approx(math.fsum(map(math.exp, best)))


@given(
    st.lists(st.dictionaries(st.integers(0, 2), CHOICES, max_size=3), min_size=1, max_size=3),
    st.integers(1, 20),
)
def test_a_choice_depends_on_the_token_before_it(
    givens: list[dict[int, tuple[tuple[int, float], ...]]], size: int
) -> None:
    levels = [Level(((0, -1.0), (1, -2.0)), given) for given in givens]
    every: dict[tuple[int, ...], float] = {(): 0.0}
    for depth, level in enumerate(levels):
        for path in [path for path in every if len(path) == depth]:
            for token, value in level.given.get((2, *path)[-1], level.choices):
                every[*path, token] = every[path] + value
    del every[()]
    tree = draft_tree(levels, size, root=2)
    drafted = {
        tuple(tree[i].token for i in ancestors(tree, end)): tree[end].logprob for end in range(len(tree))
    }
    assert len(drafted) == len(tree) == min(size, len(every))
    assert all(value == pytest.approx(every[path]) for path, value in drafted.items())
    assert sorted(drafted.values(), reverse=True) == pytest.approx(
        sorted(every.values(), reverse=True)[:size]
    )


@given(LEVELS, st.integers(1, 9), st.integers(0, 12))
def test_ends_are_the_likeliest_outcomes_of_a_verification(
    levels: list[list[tuple[int, float]]], size: int, count: int
) -> None:
    tree = draft_tree([Level(tuple(choices)) for choices in levels], size)
    chance = {-1: 1.0} | {i: math.exp(node.logprob) for i, node in enumerate(tree)}
    stops = {
        end: here - sum(chance[i] for i, node in enumerate(tree) if node.parent == end)
        for end, here in chance.items()
    }
    got = likeliest_ends(tree, count)
    assert got == tuple(sorted(set(got))) and len(got) == min(count, len(tree) + 1)
    rest = [stops[end] for end in stops if end not in got]
    assert not got or not rest or min(stops[end] for end in got) >= max(rest) - 1e-9


def test_the_base_choice_is_accepted_and_a_near_miss_only_by_a_share() -> None:
    tree = (Node(7, -1, 0, -0.1), Node(8, -1, 0, -0.9), Node(9, 0, 1, -0.2))
    chosen = Reading(8, math.log(0.6), target_logprobs=(math.log(0.3), math.log(0.6)))
    assert accepted_child(tree, -1, chosen, 1.0) == (1, chosen)
    other = Reading(5, math.log(0.5), target_logprobs=(math.log(0.2), math.log(0.26)))
    assert accepted_child(tree, -1, other, 1.0) is None
    assert accepted_child(tree, -1, other, 0.6) is None
    accepted = accepted_child(tree, -1, other, 0.5)
    assert accepted is not None
    assert accepted[0] == 1 and accepted[1].token == 8 and accepted[1].logprob == math.log(0.26)
    assert accepted_child(tree, 2, other, 0.0) is None


def test_the_table_names_every_setting_and_who_reads_it() -> None:
    assert {"decoder", *KNOBS} == {field.name for field in fields(Decoding)}
    assert {name for decoder in DECODERS.values() for name in decoder.knobs} == set(KNOBS)
    masks = ("threshold", "schedule", "entropy", "cumulative")
    kinds = {
        Traits("causal", True, 9, ()): ("ar", "lossless", "relaxed", *masks),
        Traits("block", False, 9, (), block_grid=4): masks,
        Traits("causal", False, -1, (), noise="uniform"): ("renoise",),
        Traits("causal", False, 9, (), canvas="causal"): ("reorder",),
    }
    assert {traits: available(traits) for traits in kinds} == kinds
    assert all(f"`{name}`" in described() for name in (*DECODERS, *KNOBS))
