"""A tiny model of every family, by a config.json as the family spells one."""

from __future__ import annotations

from dataclasses import replace

from tests import tiny
from vermilion.models.configuration import spec_from_config
from vermilion.models.families import Family, ModelSpec

SIZES = {
    "num_layers": 2, "hidden_size": 40, "num_heads": 4, "num_kv_heads": 2, "ffn_size": 72,
    "vocab_size": tiny.VOCAB, "context_length": 512, "mask_token_id": tiny.MASK, "eos_token_ids": tiny.EOS,
    "block_grid": 8, "activation": "silu",
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "expert_intermediate_size": 24,
    "num_shared_experts": 1, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5,
    "norm_topk_prob": True, "first_k_dense_replace": 1,
    "top_k_experts": 2, "global_head_dim": 24, "sliding_window": 16, "n_layers": 2, "cond_dim": 12,
}  # fmt: skip
"""What families with experts and diffusion transformers ask for besides."""


def spec_of(family: Family) -> ModelSpec:
    """A tiny model of the family, by a config.json as it spells one."""
    config = {family.keys[name]: size for name, size in SIZES.items() if name in family.keys}
    config |= EXPERTS
    config = {family.inner: config, **config} if family.inner else config
    spec = spec_from_config({**config, "model_type": family.model_types[0], **family.where}, family.name)
    return replace(spec, traits=replace(spec.traits, mask_token_id=tiny.MASK))
