"""The named decodings a request can choose, and the reading of its own knobs over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType

from vermilion.decoding.knobs import DECODING, check_decoding
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
    check_decoding(chosen)
    return chosen


def _checked(name: str, value: object) -> object:
    if name == "decoder":
        return value
    if name not in DECODING:
        known = ", ".join(field.name for field in fields(Decoding))
        raise BadParameter(f"decoding.{name}", value, f"the settings {known}")
    return DECODING[name].checked(f"decoding.{name}", value)
