"""Nemotron-Labs-Diffusion (3B, 8B, 14B): Ministral's shape, causal text, blocks of masks that see each other.

One head reads both: from clean rows the next token, from masks their own. The text model is read; its
variants with a vision tower are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vermilion.models.families.family import Family
from vermilion.models.families.family_presets import WITH_BASE, Presets
from vermilion.models.families.layer_rules import Config
from vermilion.models.families.names import TensorNames
from vermilion.models.families.traits import Traits
from vermilion.types import Decoding


def _fields(config: Config) -> Mapping[str, Any]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    growth = rope.get("llama_4_scaling_beta") or 0.0
    return {
        "query_growth": growth,
        "query_period": rope.get("original_max_position_embeddings", 0) if growth else 0,
    }


_PRESETS: Presets = MappingProxyType(
    {
        "ar": WITH_BASE["ar"],
        "lossless": Decoding(decoder="lossless", block_length=16, draft_nodes=16, lookup=64),
        "quality": Decoding(decoder="threshold", block_length=32, threshold=0.95),
        "balanced": Decoding(decoder="threshold", block_length=32, threshold=0.9),
        "fast": Decoding(decoder="bound", block_length=32, threshold=0.9, min_threshold=0.45, factor=2.0),
    }
)

NEMOTRON = Family(
    "nemotron-labs-diffusion",
    ("nemotron_labs_diffusion",),
    derived=_fields,
    names=TensorNames(
        embedding="encoder.embed_tokens",
        norm="encoder.norm",
        head="diffusion_head",
        layer="encoder.layers.{}.",
        ignored=("rotary_emb.inv_freq", ".self_attn.k_scale", ".self_attn.v_scale"),
    ),
    traits=Traits("causal", False, 100, (11,), next_token=True),
    presets=_PRESETS,
)
