"""Draft trees and what the base accepts against their definitions, tried out by brute force."""

from __future__ import annotations

import itertools
import math

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
from vermilion.decoding.passes import Reading

LOGPROBS = st.sampled_from([0.0, -0.05, -0.1, -0.5, -1.0, -1.0, -2.3, -7.0])


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


@given(LEVELS, st.integers(1, 9), st.floats(-6.0, 0.0))
def test_a_tree_of_likely_drafts_is_the_whole_one_without_the_others(
    levels: list[list[tuple[int, float]]], size: int, least: float
) -> None:
    some = [Level(tuple(choices)) for choices in levels]
    likely = tuple(node for node in draft_tree(some, size) if node.logprob >= least)
    assert draft_tree(some, size, least=least) == likely


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
