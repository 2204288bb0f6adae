"""What a request asked for, a preset of its model and knobs over it, as a `Decoding`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from vermilion.decoding.decoders import DECODERS, check_decoding, checked
from vermilion.errors import BadParameter
from vermilion.models.families.family_presets import PRESET_NAMES, WITH_BASE
from vermilion.types import Decoding, ModelInfo


def resolve(model: ModelInfo, preset: str | None, knobs: Mapping[str, object] | None = None) -> Decoding:
    """The decoding a request asked of `model`: a preset (its default if None) with single knobs set over it.

    Raises `BadParameter` for a preset or a decoder that the model does not have, an unknown knob, or a value
    out of range.
    """
    name = preset or model.default_preset
    if name not in model.presets:
        raise BadParameter("preset", name, ", ".join(model.presets), _without_base(model, name))
    chosen = with_knobs(model.presets[name], knobs or {})
    if model.decoders and chosen.decoder not in model.decoders:
        why = _without_base(model, chosen.decoder) or f"{model.id} cannot run others."
        raise BadParameter("decoding.decoder", chosen.decoder, ", ".join(model.decoders), why)
    return chosen


def check(preset: str | None, knobs: Mapping[str, object] | None = None) -> None:
    """Raise the error that `resolve` would for any model, before one is loaded."""
    if preset and preset not in PRESET_NAMES:
        raise BadParameter("preset", preset, ", ".join(PRESET_NAMES))
    with_knobs(Decoding(), knobs or {})


def with_knobs(decoding: Decoding, knobs: Mapping[str, object]) -> Decoding:
    """`decoding` with the knobs that a request set, and those that a decoder which it names has of its own.
    Raises `BadParameter`."""
    if not knobs:
        return _checked(decoding)
    decoder = knobs.get("decoder")
    defaults = DECODERS[decoder].defaults if isinstance(decoder, str) and decoder in DECODERS else {}
    for knob, value in {**defaults, **knobs}.items():
        decoding = replace(decoding, **{knob: checked(knob, value)})  # type: ignore[arg-type]
    check_decoding(decoding)
    return decoding


@lru_cache(256)
def _checked(preset: Decoding) -> Decoding:
    """Once for each of a model's own presets, whatever asks for it. Not for what a request gave: there True
    is no 1."""
    check_decoding(preset)
    return preset


def _without_base(model: ModelInfo, name: str) -> str:
    """Why a model without an autoregressive base refuses what needs one; empty for other reasons."""
    needs_base = name in WITH_BASE or (name in DECODERS and DECODERS[name].needs_base)
    if not needs_base or "lossless" in model.decoders:
        return ""
    return f"{name} needs an autoregressive base to verify tokens, and {model.id} has none."
