"""What a request may ask of the decoder, and how it is told off."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from vermilion.decoding.presets import PRESETS, resolve
from vermilion.errors import BadParameter


def test_knobs_are_set_over_the_preset_and_leave_it_as_it_was() -> None:
    assert resolve(None, None) == PRESETS["lossless"]
    assert resolve(None, {}, default="ar").decoder == "ar"
    got = resolve("fast", {"block_length": 6, "accept_above": 1, "branches": 2})
    assert got == replace(PRESETS["fast"], block_length=6, accept_above=1.0, branches=2)
    assert PRESETS["fast"].block_length != 6 and resolve("fast", None) is PRESETS["fast"]


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("decoder", "magic"),
        ("decoder", None),
        ("decoder", []),
        ("block_length", 0),
        ("block_length", 65),
        ("block_length", True),
        ("block_length", 4.0),
        ("draft_nodes", 0),
        ("branches", -1),
        ("threshold", math.nan),
        ("threshold", math.inf),
        ("threshold", "0.5"),
        ("revise_below", 1.01),
        ("accept_above", False),
        ("colour", 1),
    ],
)
def test_a_bad_knob_is_named_with_what_is_allowed(knob: str, value: object) -> None:
    with pytest.raises(BadParameter) as caught:
        resolve(None, {knob: value})
    assert caught.value.param == f"decoding.{knob}"
    assert "allowed" in str(caught.value)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(BadParameter, match="lossless, balanced, fast"):
        resolve("quick", None)


@pytest.mark.parametrize("decoder", ["threshold", "cumulative"])
def test_a_probability_above_one_is_refused_but_nats_are_not(decoder: str) -> None:
    with pytest.raises(BadParameter, match="probability"):
        resolve(None, {"decoder": decoder, "threshold": 1.5})
    assert resolve(None, {"decoder": "entropy", "threshold": 1.5}).threshold == 1.5
