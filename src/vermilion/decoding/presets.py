"""The named decodings a request can choose, and the reading of its own knobs over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType

from vermilion.errors import BadParameter
from vermilion.types import Decoding

PRESETS: Mapping[str, Decoding] = MappingProxyType(
    {
        "ar": Decoding(decoder="ar"),
        "lossless": Decoding(decoder="lossless", block_length=3, draft_nodes=3, lookup=16),
        "balanced": Decoding(decoder="relaxed", block_length=4, draft_nodes=3, accept_above=0.3),
        "fast": Decoding(decoder="relaxed", block_length=4, draft_nodes=4, accept_above=0.05),
    }
)

_DECODERS = ("ar", "lossless", "relaxed", "threshold", "schedule", "entropy", "cumulative")
_INTEGER_RANGES = {
    "block_length": (1, 64),
    "first_block": (0, 64),
    "max_steps": (0, 64),
    "max_revisions": (0, 8),
    "draft_nodes": (1, 256),
    "branches": (0, 64),
    "lookup": (0, 64),
}
_REAL_RANGES = {"threshold": (0.0, 100.0), "revise_below": (0.0, 1.0), "accept_above": (0.0, 1.0)}


def resolve(preset: str | None, knobs: Mapping[str, object] | None, default: str = "lossless") -> Decoding:
    """The decoding a request asked for: a preset (`default` if None) with single knobs set over it.

    Raises `BadParameter` for an unknown preset or knob, or a value out of range.
    """
    name = default if preset is None else preset
    if name not in PRESETS:
        raise BadParameter("preset", name, ", ".join(PRESETS))
    chosen = PRESETS[name]
    for knob, value in (knobs or {}).items():
        chosen = replace(chosen, **{knob: _checked(knob, value)})  # type: ignore[arg-type]
    if chosen.decoder in ("threshold", "cumulative") and chosen.threshold > 1:
        raise BadParameter("decoding.threshold", chosen.threshold, "0 to 1: it is a probability")
    return chosen


def _checked(knob: str, value: object) -> object:
    param = f"decoding.{knob}"
    if knob == "decoder":
        if value not in _DECODERS:
            raise BadParameter(param, value, ", ".join(_DECODERS))
        return value
    if knob in _INTEGER_RANGES:
        low, high = _INTEGER_RANGES[knob]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise BadParameter(param, value, f"an integer from {low} to {high}")
        return value
    if knob in _REAL_RANGES:
        least, most = _REAL_RANGES[knob]
        # `not (a <= x <= b)` also refuses NaN.
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise BadParameter(param, value, f"a number from {least:g} to {most:g}")
        return float(value)
    raise BadParameter(param, value, "the knobs " + ", ".join(field.name for field in fields(Decoding)))
