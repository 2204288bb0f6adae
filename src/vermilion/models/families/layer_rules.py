"""Which layers of a published kind differ from the plain one, from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vermilion.errors import ModelFileError
from vermilion.models.families.architecture import PLAIN_LAYER, Experts, LayerKind

Config = Mapping[str, Any]
"""The contents of a config.json."""
Layers = tuple[LayerKind, ...]


def sliding_layers(config: Config) -> Layers:
    """Windows as Qwen's and Gemma's configs state them: `layer_types`, or all layers from the
    `max_window_layers`-th on."""
    window, num_layers = config.get("sliding_window") or 0, config.get("num_hidden_layers", 0)
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.get("max_window_layers", 0) if config.get("use_sliding_window") else num_layers
        kinds = ["sliding_attention" if index >= first else "full_attention" for index in range(num_layers)]
    layers = tuple(LayerKind(window=window if kind == "sliding_attention" else 0) for kind in kinds)
    return layers if any(layer.window for layer in layers) else ()


def position_free_layers(config: Config) -> Layers:
    """SmolLM3: `no_rope_layers` has 0 where a layer rotates nothing."""
    rotated = config.get("no_rope_layers")
    if not rotated:
        every = config.get("no_rope_layer_interval", 4)
        rotated = [int((index + 1) % every != 0) for index in range(config["num_hidden_layers"])]
    return tuple(LayerKind(rotated=bool(each)) for each in rotated)


def _num_experts(config: Config) -> int:
    """Under its own name, or the one that transformers 5 writes."""
    count = config.get("num_experts", config.get("num_local_experts"))
    if count is None:
        raise ModelFileError("config.json lacks num_experts.")
    return int(count)


def qwen3_moe_layers(config: Config) -> Layers:
    """Experts in all layers but `mlp_only_layers` and those between `decoder_sparse_step`s."""
    experts = Experts(
        _num_experts(config),
        config["num_experts_per_tok"],
        config["moe_intermediate_size"],
        normalized=bool(config.get("norm_topk_prob", False)),
    )
    dense, step = config.get("mlp_only_layers") or (), config.get("decoder_sparse_step", 1)
    sparse = LayerKind(experts=experts, dense=False)
    return tuple(
        PLAIN_LAYER if index in dense or (index + 1) % step else sparse
        for index in range(config["num_hidden_layers"])
    )


def olmoe_layers(config: Config) -> Layers:
    if config.get("clip_qkv"):
        raise ModelFileError("clip_qkv, which bounds queries, keys and values, is not supported.")
    experts = Experts(
        _num_experts(config),
        config["num_experts_per_tok"],
        config["intermediate_size"],
        normalized=bool(config.get("norm_topk_prob", False)),
    )
    return (LayerKind(experts=experts, dense=False),) * int(config["num_hidden_layers"])


def llada_moe_layers(config: Config) -> Layers:
    """Experts where `moe_layer_freq` has 1; the weights of the chosen are never normalised."""
    for key in ("clip_qkv", "moe_router_enable_expert_bias"):
        if config.get(key):
            raise ModelFileError(f"{key} of LLaDA-MoE is not supported.")
    experts = Experts(
        _num_experts(config),
        config["num_experts_per_tok"],
        config["expert_intermediate_size"],
        config.get("shared_expert_intermediate_size") or 0,
        normalized=False,
    )
    num_layers = config["num_hidden_layers"]
    sparse = config.get("moe_layer_freq") or [1] * num_layers
    return tuple(LayerKind(experts=experts, dense=False) if each else PLAIN_LAYER for each in sparse)


def llada2_layers(config: Config) -> Layers:
    """The first layers dense, then experts behind a sigmoid router with a bias, and groups, or in place of
    them a capacity of blocks."""
    capacity = config.get("expert_capacity") or 0
    num_active, num_shared = config["num_experts_per_tok"], config.get("num_shared_experts") or 0
    experts = Experts(
        _num_experts(config),
        num_active,
        config["moe_intermediate_size"],
        config["moe_intermediate_size"] * num_shared,
        "sigmoid",
        router_bias=True,
        normalized=num_active > 1,
        scale=config.get("routed_scaling_factor", 1.0),
        # A config with a capacity has the keys of groups too, and means nothing by them.
        num_groups=1 if capacity else config.get("n_group") or 1,
        num_active_groups=1 if capacity else config.get("topk_group") or 1,
        block_capacity=capacity,
        block_size=config["block_size"] if capacity else 0,
    )
    num_dense = config.get("first_k_dense_replace", 0)
    sparse = LayerKind(experts=experts, dense=False)
    return tuple(PLAIN_LAYER if index < num_dense else sparse for index in range(config["num_hidden_layers"]))
