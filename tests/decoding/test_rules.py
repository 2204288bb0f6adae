"""Settle rules against their definitions, tried out by brute force, and the table that names them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from vermilion.decoding import decoders
from vermilion.decoding.caches import CACHE_SETTINGS
from vermilion.decoding.decoders import DECODERS, available, described
from vermilion.decoding.knobs import KNOBS
from vermilion.decoding.passes import Reading
from vermilion.decoding.rules import Step
from vermilion.models.families import Traits
from vermilion.types import Decoding


def settle(
    decoding: Decoding, readings: Sequence[Reading], forced: Reading | None, steps_left: int
) -> tuple[int, ...]:
    return tuple(decoders.settle(Step(decoding, readings, steps_left, forced)))


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
    assert set(available(Traits("full", True, 9, ()))) == set(DECODERS) - base - others - {"indel"}
    edits = Traits("block", False, 9, (), 4, delete_token_id=7, split_token_id=8)
    assert set(available(edits)) == set(DECODERS) - base - others
    assert available(Traits("causal", False, -1, (), noise="uniform")) == ("renoise",)
    assert available(Traits("causal", False, 9, (), canvas="causal")) == ("reorder",)
    assert all(f"`{name}`" in described() for name in (*DECODERS, *KNOBS))
