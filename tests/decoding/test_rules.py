"""Settle rules against their definitions, tried out by brute force, and the table that names them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import fields, replace

from hypothesis import given
from hypothesis import strategies as st

from vermilion.decoding import settling
from vermilion.decoding.caches import CACHE_SETTINGS
from vermilion.decoding.decoders import DECODERS, available, described
from vermilion.decoding.knobs import KNOBS
from vermilion.decoding.passes import Reading
from vermilion.decoding.rules import Step, dream_shares
from vermilion.models.families import Traits
from vermilion.types import Decoding


def settle(
    decoding: Decoding, readings: Sequence[Reading], forced: Reading | None, steps_left: int
) -> tuple[int, ...]:
    return tuple(settling.settle(Step(decoding, readings, steps_left, forced)))


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


def test_the_table_names_every_setting_and_who_reads_it() -> None:
    assert {"decoder", "cache", *KNOBS} == {field.name for field in fields(Decoding)}
    read = {name for decoder in DECODERS.values() for name in decoder.knobs}
    assert {*read, *CACHE_SETTINGS} == set(KNOBS)
    base = {name for name, decoder in DECODERS.items() if decoder.needs_base}
    others = {"renoise", "reorder"}
    standing = {name for name, decoder in DECODERS.items() if decoder.stands}
    assert base == {"ar", "lossless", "relaxed"} and {"stable", "joint", "dream-margin"} < standing
    assert set(available(Traits("causal", True, 9, ()))) == set(DECODERS) - standing - others
    tokens = {"indel", "dreamon"}
    assert set(available(Traits("full", False, 9, ()))) == set(DECODERS) - base - others - tokens
    assert set(available(Traits("full", True, 9, ()))) == set(DECODERS) - base - others - tokens - {"wino"}
    expands = Traits("full", True, 9, (), expand_token_id=7)
    assert "dreamon" in available(expands)
    edits = Traits("block", False, 9, (), 4, delete_token_id=7, split_token_id=8)
    assert set(available(edits)) == set(DECODERS) - base - others - {"dreamon", "daedal"}
    assert available(Traits("causal", False, -1, (), noise="uniform")) == ("renoise",)
    assert available(Traits("causal", False, 9, (), canvas="causal")) == ("reorder",)
    assert all(f"`{name}`" in described() for name in (*DECODERS, *KNOBS))


def chosen(decoding: Decoding, readings: Sequence[Reading], **more: object) -> set[int]:
    return set(settling.settle(Step(decoding, readings, 9, **more)))  # type: ignore[arg-type]


@given(READINGS, st.sampled_from([0.3, 1.0, 1.7, 4.0]))
def test_factor_takes_the_most_that_its_bound_allows(readings: list[Reading], factor: float) -> None:
    got = chosen(Decoding("factor", factor=factor), readings)
    ranked = sorted((math.exp(r.logprob) for r in readings), reverse=True)
    allowed = [n for n, p in enumerate(ranked, 1) if (n + 1) * (1 - p) < factor]
    assert len(got) == max(1, max(allowed, default=1))
    out = [r.logprob for i, r in enumerate(readings) if i not in got]
    assert not out or min(readings[i].logprob for i in got) >= max(out)


@given(st.integers(1, 64), st.integers(1, 64))
def test_dream_s_shares_settle_everything_in_time(masked: int, steps: int) -> None:
    shares = dream_shares(masked, steps)
    assert sum(shares) == masked and len(shares) <= steps and min(shares) > 0


def test_positions_decide_where_rules_look_at_them() -> None:
    likely = [Reading(2, math.log(p)) for p in (0.95, 0.5, 0.6, 0.3, 0.45)]
    apart = {"places": (0, 1, 2, 5, 6)}
    assert chosen(Decoding("hierarchical", threshold=0.9, min_threshold=0.4), likely, **apart) == {0, 4}
    assert chosen(Decoding("hierarchical", threshold=0.7, min_threshold=0.99), likely, **apart) == {0}
    near = Decoding("near", threshold=0.9, min_threshold=0.45, radius=1)
    assert chosen(near, likely, **apart) == {0, 1}
    assert chosen(replace(near, radius=2), likely, **apart) == {0, 1, 2}
    assert chosen(Decoding("prefix", threshold=0.45), likely) == {0, 1, 2}
    assert chosen(Decoding("prefix", threshold=0.99), likely[1:]) == {0}
    assert chosen(Decoding("bound", threshold=0.9, min_threshold=0.45, factor=2.0), likely) == {0, 2, 1}


def test_what_earlier_passes_said_counts() -> None:
    calm, moved = Reading(2, -0.01, divergence=0.001), Reading(3, -0.01, divergence=0.5)
    decoding = Decoding("stable", threshold=0.9, max_divergence=0.01, stable_passes=2)
    past = ((calm,), (calm,), (moved,), ())
    assert chosen(decoding, [calm, moved, calm, calm], past=past) == {0}
    # Token 5 has led twice, so the pass in which 4 is barely ahead settles 5.
    led = Reading(5, math.log(0.5), top=((5, math.log(0.5)),))
    now = Reading(4, math.log(0.42), target_logprobs=(math.log(0.4),), top=((4, math.log(0.42)),))
    credit = Decoding("credit", threshold=0.45, credit_weight=0.7)
    settled = settling.settle(Step(credit, [now], 9, past=((led, led),)))
    assert settled[0].token == 5 and math.exp(settled[0].logprob) > 0.45
    assert (
        settling.settle(Step(replace(credit, credit_weight=0.0), [now], 9, past=((led, led),)))[0].token == 4
    )


def test_an_end_settles_last_where_it_is_to() -> None:
    readings = [Reading(1, -0.01), Reading(4, -2.0), Reading(1, -0.02)]
    decoding = Decoding("schedule", eos_last=1)
    assert set(settling.settle(Step(decoding, readings, 3, ends=frozenset({1})))) == {1}
    assert set(settling.settle(Step(replace(decoding, eos_last=0), readings, 3, ends=frozenset({1})))) == {0}
    assert set(settling.settle(Step(decoding, readings, 1, ends=frozenset({1})))) == {0, 1, 2}
