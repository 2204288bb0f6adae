"""MDLM and BD3-LM (110M to 170M): diffusion transformers, GPT-2's vocabulary and the mask behind it.

Only models that are not told the time are read, as are all that were published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vermilion.errors import ModelFileError
from vermilion.models.families.family import Family
from vermilion.models.families.family_presets import FIRST_HITTING
from vermilion.models.families.layer_rules import Config
from vermilion.models.families.names import TensorNames
from vermilion.models.families.traits import Traits

_KEYS = {
    "num_layers": "n_blocks",
    "hidden_size": "hidden_dim",
    "num_heads": "n_heads",
    "vocab_size": "vocab_size",
    "context_length": "model_length",
    "condition_size": "cond_dim",
}
_FIXED = {
    "ffn_bias": True,
    "head_bias": True,
    "activation": "gelu_tanh",
    "rope_theta": 10_000.0,
    "tied_embeddings": False,
}


def _fields(config: Config) -> Mapping[str, Any]:
    if config.get("time_conditioning") or config.get("causal") or config.get("adaln") is False:
        raise ModelFileError("MDLM and BD3-LM are read with adaln, without time_conditioning and not causal.")
    return {"ffn_size": 4 * config["hidden_dim"], "mask_token_id": config["vocab_size"] - 1}


_NAMES = TensorNames(
    embedding="backbone.vocab_embed.embedding",
    norm="backbone.output_layer.norm_final",
    head="backbone.output_layer.linear",
    layer="backbone.blocks.{}.",
    products={
        "qkv": ("attn_qkv",),
        "output": ("attn_out",),
        "up": ("mlp.0",),
        "down": ("mlp.2",),
        "modulation": ("adaLN_modulation",),
    },
    norms={"attention_norm": "norm1", "ffn_norm": "norm2"},
    model_products={
        "condition.first": ("backbone.sigma_map.mlp.0",),
        "condition.second": ("backbone.sigma_map.mlp.2",),
        "norm.modulation": ("backbone.output_layer.adaLN_modulation",),
    },
    bare=("backbone.vocab_embed.embedding",),
    ignored=("rotary_emb.inv_freq", "sampling_eps_min", "sampling_eps_max"),
)

BD3LM = Family(
    "bd3lm",
    ("bd3lm",),
    where={"cross_attn": True},
    keys={**_KEYS, "block_grid": "block_size"},
    fixed=_FIXED,
    derived=_fields,
    names=_NAMES,
    traits=Traits("block", False, 50257, (50256,), block_grid=4),
    presets=FIRST_HITTING,
)
MDLM = Family(
    "mdlm",
    ("mdlm",),
    keys=_KEYS,
    fixed=_FIXED,
    derived=_fields,
    names=_NAMES,
    traits=Traits("full", False, 50257, (50256,)),
    presets=FIRST_HITTING,
)
