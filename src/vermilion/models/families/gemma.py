"""DiffusionGemma (26B-A4B): a causal encoder and a denoiser of uniform noise over one set of weights.

Its reference is `transformers`, from 5.11 on. The text part is read; the vision tower is left alone.
"""

from __future__ import annotations

import math
from typing import Any

from vermilion.models.families.architecture import Experts, LayerKind
from vermilion.models.families.family import HUGGING_FACE, Family
from vermilion.models.families.family_presets import RENOISING
from vermilion.models.families.layer_rules import Config
from vermilion.models.families.names import LLAMA_NORMS, ExpertNames, TensorNames
from vermilion.models.families.rope import RopeScaling
from vermilion.models.families.traits import NO_MASK_ID, Traits

_WINDOW, _FULL = "sliding_attention", "full_attention"
_ANGLES = {
    _WINDOW: {"rope_type": "default", "rope_theta": 10_000.0},
    _FULL: {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25},
}


def gemma_layers(config: Config) -> tuple[LayerKind, ...]:
    """Windows with their own angles and heads, and every sixth layer that sees all and has no values of its
    own, the last one always."""
    count = config["num_hidden_layers"]
    kinds = config.get("layer_types") or [_FULL if i % 6 == 5 else _WINDOW for i in range(count)]
    angles = {**_ANGLES, **(config.get("rope_parameters") or {})}
    experts = Experts(
        num_experts=config["num_experts"],
        num_active=config["top_k_experts"],
        ffn_size=config["moe_intermediate_size"],
        scaled_router=True,
    )
    layers = []
    for index, kind in enumerate([*kinds[:-1], _FULL]):
        theta, share = angles[kind]["rope_theta"], angles[kind].get("partial_rotary_factor", 1.0)
        if kind == _WINDOW:
            window = config.get("sliding_window", 512)
            layers.append(LayerKind(window, rope_theta=theta, rope_fraction=share, experts=experts))
            continue
        # Configs spell the heads of these layers in one of two ways.
        own = (config.get("per_layer_config") or {}).get(str(index), {})
        layers.append(
            LayerKind(
                head_dim=own.get("head_dim") or config.get("global_head_dim") or 512,
                num_kv_heads=own.get("num_key_value_heads") or config.get("num_global_key_value_heads") or 0,
                rope_theta=theta,
                rope_fraction=share,
                rope_scaling=RopeScaling("proportional"),
                values_are_keys=True,
                experts=experts,
            )
        )
    return tuple(layers)


def _fields(config: Config) -> dict[str, Any]:
    return {
        "embedding_scale": math.sqrt(config["hidden_size"]),
        "logit_softcap": config.get("final_logit_softcapping") or 30.0,
    }


_LAYER = "model.decoder.layers.{}."
DIFFUSION_GEMMA = Family(
    "diffusion-gemma",
    ("diffusion_gemma",),
    inner="text_config",
    keys={
        **HUGGING_FACE,
        "activation": "hidden_activation",
        "block_length": "canvas_length",
    },
    fixed={
        "qk_norm": True,
        "value_norm": True,
        "attention_scale": 1.0,
        "sandwich_norms": True,
        "self_conditioning": True,
        "rope_scaling": None,
    },
    derived=_fields,
    layers=gemma_layers,
    names=TensorNames(
        embedding="model.decoder.embed_tokens",
        norm="model.decoder.norm",
        layer=_LAYER,
        norms={
            **LLAMA_NORMS,
            "attention_out_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "ffn_out_norm": "post_feedforward_layernorm",
            "dense_out_norm": "post_feedforward_layernorm_1",
            "expert_norm": "pre_feedforward_layernorm_2",
            "expert_out_norm": "post_feedforward_layernorm_2",
        },
        experts=ExpertNames(
            router="router.proj.weight",
            stacked={"experts.gate_up_proj": ("gate", "up"), "experts.down_proj": ("down",)},
        ),
        parameters={
            "scale": "model.encoder.language_model.layers.{}.layer_scalar",
            "noisy_scale": f"{_LAYER}layer_scalar",
            "experts.router.scale": f"{_LAYER}router.scale",
            "experts.router.expert_scale": f"{_LAYER}router.per_expert_scale",
        },
        model_products={
            "self_conditioning.gate_up": (
                "model.decoder.self_conditioning.gate_proj",
                "model.decoder.self_conditioning.up_proj",
            ),
            "self_conditioning.down": ("model.decoder.self_conditioning.down_proj",),
        },
        model_norms={"self_conditioning.norm": "model.decoder.self_conditioning.pre_norm"},
        unread=("model.encoder.",),
    ),
    traits=Traits("causal", False, NO_MASK_ID, (1, 106, 50), noise="uniform"),
    presets=RENOISING,
)
