"""The decodings that a kind of model offers by name, from its traits."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vermilion.models.families.traits import Traits
from vermilion.types import Decoding

Presets = Mapping[str, Decoding]

MAX_BLOCK_LENGTH = 256
"""Positions of the longest canvas."""
MAX_WHOLE_LENGTH = 1024
"""The same where every pass is over the whole text, so that a canvas adds no rows."""

WITH_BASE: Presets = MappingProxyType(
    {
        "ar": Decoding(decoder="ar"),
        "lossless": Decoding(decoder="lossless", block_length=8, draft_nodes=12, lookup=64),
        "balanced": Decoding(decoder="relaxed", block_length=4, draft_nodes=3, accept_above=0.3),
        "fast": Decoding(decoder="relaxed", block_length=4, draft_nodes=4, accept_above=0.05),
    }
)
"""Where clean rows are an autoregressive model."""

_WINDOW = 32
"""Positions that a model without a block length of its own settles at a time, as LLaDA's own sampler."""


def canvas_presets(block_length: int = _WINDOW) -> Presets:
    """For models without an autoregressive base: one position a pass, or all that are sure enough (0.9 as in
    arXiv 2505.22618)."""
    return MappingProxyType(
        {
            "quality": Decoding(decoder="schedule", block_length=block_length),
            "balanced": Decoding(decoder="threshold", block_length=block_length, threshold=0.9),
            "fast": Decoding(decoder="threshold", block_length=block_length, threshold=0.7),
        }
    )


LLADA: Presets = MappingProxyType(
    {
        "quality": Decoding(decoder="schedule", block_length=_WINDOW),
        "balanced": Decoding(decoder="threshold", block_length=_WINDOW, threshold=0.9),
        "fast": Decoding(decoder="factor", block_length=_WINDOW, factor=1.0),
    }
)
"""LLaDA's own sampler, and both rules of Fast-dLLM over it."""

DREAM: Presets = MappingProxyType(
    {
        "quality": Decoding(decoder="dream-entropy", block_length=MAX_BLOCK_LENGTH),
        "balanced": Decoding(decoder="threshold", block_length=_WINDOW, threshold=0.9),
        "fast": Decoding(decoder="factor", block_length=_WINDOW, factor=1.0),
    }
)
"""Dream's own sampler (`alg=entropy`) over a canvas of the whole answer, and both rules of Fast-dLLM."""

DREAMON: Presets = MappingProxyType(
    {
        "quality": Decoding(decoder="dreamon", first_length=4),
        "balanced": Decoding(decoder="dreamon", first_length=4),
        "fast": Decoding(decoder="threshold", block_length=_WINDOW, threshold=0.9),
    }
)
"""DreamOn's own sampler, which fills one position a pass and finds the length; several positions a pass, with
a length that is searched before."""

SDAR: Presets = MappingProxyType(
    {
        "quality": Decoding(decoder="schedule"),
        "balanced": Decoding(decoder="dynamic", threshold=0.9),
        "fast": Decoding(decoder="dynamic", threshold=0.85),
    }
)
"""SDAR's static strategy, and its dynamic one with the thresholds of its card and of its sampler."""

FAST_DLLM_V2: Presets = MappingProxyType(
    {
        "quality": Decoding(decoder="threshold", threshold=1.0, sub_block=8),
        "balanced": Decoding(decoder="threshold", threshold=0.95, sub_block=8),
        "fast": Decoding(decoder="threshold", threshold=0.9, sub_block=8),
    }
)
"""One position a pass, and the thresholds of its code and of its card."""

LLADA2: Presets = MappingProxyType(
    {
        "quality": Decoding(decoder="schedule"),
        "balanced": Decoding(decoder="dynamic", threshold=0.95),
        "fast": Decoding(decoder="dynamic", threshold=0.9),
    }
)
"""LLaDA2.0: the threshold of its sampler, and a lower one."""


def _editing(decoder: str) -> Presets:
    quality = Decoding(decoder=decoder, threshold=0.95, edit_threshold=0.9, post_steps=16)
    fast = Decoding(decoder=decoder, threshold=0.5, edit_threshold=0.0, post_steps=16)
    return MappingProxyType({"quality": quality, "balanced": quality, "fast": fast})


LLADA21, LLADA22 = _editing("joint"), _editing("indel")
"""The publisher's two modes: Q for quality, S for speed."""

REORDERING: Presets = MappingProxyType(
    {
        "quality": Decoding(decoder="reorder", block_length=16, threshold=0.2, distance_penalty=0.02),
        "balanced": Decoding(decoder="reorder", block_length=16, threshold=0.4, distance_penalty=0.02),
        "fast": Decoding(decoder="reorder", block_length=16, threshold=0.6, distance_penalty=0.02),
    }
)
"""WeDLM: the publisher's default, and the bound of its example above."""

FIRST_HITTING: Presets = MappingProxyType(
    {
        "quality": Decoding(decoder="first-hitting", block_length=32),
        "balanced": Decoding(decoder="threshold", block_length=32, threshold=0.9),
        "fast": Decoding(decoder="threshold", block_length=32, threshold=0.7),
    }
)
"""MDLM and BD3-LM: the publisher's sampler, and what several positions a pass take."""

STRIDED: Presets = MappingProxyType(
    {
        "ar": Decoding(decoder="ar"),
        "lossless": Decoding(decoder="lossless", block_length=4, draft_nodes=4, branches=1),
        "fast": Decoding(decoder="relaxed", block_length=4, draft_nodes=4, branches=1, accept_above=0.3),
    }
)
"""I-DLM (arXiv 2604.11035): a pass verifies the last one's drafts and drafts behind them; in `fast` drafts
that are nearly as likely stand too."""

TRI_MODE: Presets = MappingProxyType(
    {
        "ar": WITH_BASE["ar"],
        "lossless": Decoding(decoder="lossless", block_length=8, draft_nodes=8, lookup=64),
        "quality": Decoding(decoder="schedule"),
        "balanced": Decoding(decoder="threshold", threshold=0.7),
        "fast": Decoding(decoder="threshold", threshold=0.5),
    }
)
"""Dhara: next tokens, drafts of 8 that they verify, and blocks with the publisher's threshold (`fast`)."""

RENOISING: Presets = MappingProxyType(
    {
        "quality": Decoding(
            decoder="renoise", block_length=256, max_steps=48, threshold=0.1, stop_entropy=0.0
        ),
        "balanced": Decoding(decoder="renoise", block_length=256, max_steps=48, threshold=0.1),
        "fast": Decoding(decoder="renoise", block_length=256, max_steps=16, threshold=0.1),
    }
)
"""DiffusionGemma: the publisher's; every pass of its schedule, and a third of it, beside."""


def presets_for(traits: Traits, block_length: int = 0) -> Presets:
    """The presets of a model with these traits, whose denoiser was trained on blocks of this length."""
    if traits.has_next_token:
        guesses = traits.denoises or traits.drafter
        return WITH_BASE if guesses else {name: WITH_BASE[name] for name in ("ar", "lossless")}
    return canvas_presets(traits.block_grid or (block_length if traits.context == "causal" else 0) or _WINDOW)


def default_preset(presets: Presets) -> str:
    """What answers a request that names no preset: the exact one, or the middle one."""
    return "lossless" if "lossless" in presets else "balanced"


PRESET_NAMES = tuple(dict.fromkeys([*WITH_BASE, *canvas_presets()]))
"""Every name that some family has."""
