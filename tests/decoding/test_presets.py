"""What a request may ask of the decoder, and how it is told off."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from vermilion.decoding.decoders import DECODERS, available, check_decoding
from vermilion.decoding.presets import check, resolve
from vermilion.errors import BadParameter
from vermilion.models.families import FAMILIES, Traits
from vermilion.models.families.family_presets import PRESET_NAMES, WITH_BASE, canvas_presets, default_preset
from vermilion.types import Decoding, ModelInfo

BASED = ModelInfo("m", 8, 8, (), 7, decoders=tuple(DECODERS), presets=WITH_BASE, default_preset="lossless")
CANVAS = replace(
    BASED,
    decoders=available(Traits("full", False, 7, ())),
    presets=canvas_presets(8),
    default_preset=default_preset(canvas_presets()),
)


def test_knobs_are_set_over_the_preset_and_leave_it_as_it_was() -> None:
    assert resolve(BASED, None) == WITH_BASE["lossless"]
    assert resolve(BASED, "ar", {}).decoder == "ar"
    got = resolve(BASED, "fast", {"block_length": 6, "accept_above": 1, "branches": 2})
    assert got == replace(WITH_BASE["fast"], block_length=6, accept_above=1.0, branches=2)
    assert WITH_BASE["fast"].block_length != 6 and resolve(BASED, "fast") == WITH_BASE["fast"]


def test_a_model_without_a_base_has_presets_of_its_own() -> None:
    assert resolve(CANVAS, None) == Decoding("threshold", threshold=0.9, block_length=8)
    assert resolve(CANVAS, "quality").decoder == "schedule"
    assert resolve(CANVAS, "fast").threshold < resolve(CANVAS, "balanced").threshold


@pytest.mark.parametrize("preset", ["lossless", "ar"])
def test_what_needs_a_base_is_refused_with_the_reason_where_there_is_none(preset: str) -> None:
    with pytest.raises(BadParameter, match=r"needs an autoregressive base .*m has none") as caught:
        resolve(CANVAS, preset)
    assert "allowed: quality, balanced, fast" in str(caught.value)
    with pytest.raises(BadParameter, match="needs an autoregressive base"):
        resolve(CANVAS, None, {"decoder": preset})


def test_every_preset_can_be_run_by_the_models_that_offer_it() -> None:
    for model in (BASED, CANVAS):
        assert all(resolve(model, name) for name in model.presets)


def test_every_family_can_run_its_presets_and_names_the_same_ones() -> None:
    for family in FAMILIES:
        for name, decoding in family.presets.items():
            assert family.traits is not None and DECODERS[decoding.decoder].fits(family.traits), family.name
            check_decoding(decoding)
            assert name in PRESET_NAMES
    ours = {family.name: family.presets for family in FAMILIES}
    assert ours["llada2.1"]["fast"].edit_threshold == 0.0 and ours["llada2.1"]["quality"].threshold == 0.95
    assert ours["fast-dllm-v2"]["balanced"].sub_block == 8


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("decoder", "magic"),
        ("decoder", None),
        ("decoder", []),
        ("block_length", 0),
        ("block_length", 1025),
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
        check(None, {knob: value})
    assert caught.value.param == f"decoding.{knob}"
    assert "allowed" in str(caught.value)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(BadParameter, match="lossless, balanced, fast"):
        resolve(BASED, "quick")
    with pytest.raises(BadParameter, match="fast, quality"):
        check("quick")


@pytest.mark.parametrize("decoder", ["threshold", "cumulative"])
def test_a_probability_above_one_is_refused_but_nats_are_not(decoder: str) -> None:
    with pytest.raises(BadParameter, match="probability"):
        resolve(BASED, None, {"decoder": decoder, "threshold": 1.5})
    assert resolve(BASED, None, {"decoder": "entropy", "threshold": 1.5}).threshold == 1.5


def test_a_decoder_brings_its_own_settings_where_the_request_sets_none() -> None:
    assert resolve(CANVAS, None, {"decoder": "near"}).min_threshold == 0.5
    assert resolve(CANVAS, None, {"decoder": "near", "min_threshold": 0.2}).min_threshold == 0.2
    assert resolve(CANVAS, None, {"decoder": "bound"}).factor == 2.0
    assert resolve(CANVAS, None, {"cache": "dual"}).cache == "dual"
    for wrong in ("most", 3, []):
        with pytest.raises(BadParameter, match="none, prefix, dual, vicinity"):
            resolve(CANVAS, None, {"cache": wrong})
