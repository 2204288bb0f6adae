"""Dhara (250M): a Llama with Canon convolutions that reads next tokens causally and denoises blocks.

One set of weights, trained as both, so a request's decoder says what its text sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vermilion.errors import ModelFileError
from vermilion.models.families.family import HUGGING_FACE, Family
from vermilion.models.families.family_presets import TRI_MODE
from vermilion.models.families.layer_rules import Config
from vermilion.models.families.names import TensorNames
from vermilion.models.families.traits import Traits


def _fields(config: Config) -> Mapping[str, Any]:
    places, bias = config.get("canon_set", "ABCD"), config.get("canon_bias", False)
    if places != "ABCD" or bias or config.get("canon_activation") or not config.get("canon_residual", True):
        raise ModelFileError(
            "Canon layers are read in the places ABCD, without bias and activation and with a residual; "
            f"config.json has canon_set {places!r}, or others of these."
        )
    capped = config.get("use_logit_softcap", True)
    return {
        "context_length": config.get("max_position_embeddings", 32768),
        "qk_norm": config.get("use_qk_norm", True),
        "canon_kernel": config.get("canon_kernel", 4),
        "logit_softcap": config.get("logit_softcap", 30.0) if capped else 0.0,
        "tied_embeddings": config.get("tie_word_embeddings", True),
    }


DHARA = Family(
    "dhara",
    ("dhara_ar",),
    keys=HUGGING_FACE,
    fixed={"late_qk_norm": True},
    derived=_fields,
    names=TensorNames(
        parameters={"inverse_frequencies": "model.layers.{}.self_attn.rotary_emb.inv_freq"},
        convolutions={
            "canon_a": ("canon_a.conv",),
            "canon_b": tuple(f"self_attn.canon_b_{part}.conv" for part in "qkv"),
            "canon_c": ("canon_c.conv",),
            "canon_d": ("mlp.canon_d.conv",),
        },
    ),
    traits=Traits("causal", False, 49152, (), block_grid=32, next_token=True, canvas_context="block"),
    presets=TRI_MODE,
)
