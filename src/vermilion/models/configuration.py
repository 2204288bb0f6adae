"""Maps a checkpoint's own description (GGUF metadata, config.json) to our family row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vermilion.errors import ModelFileError
from vermilion.models.families import Architecture, Family, Traits
from vermilion.models.gguf_file import GGUFHeader

NO_MASK_ID = -1
"""Mask id of an autoregressive model without a denoiser: no token has it, only `ar` can run."""
_MODEL_TYPES = ("llama", "qwen2", "qwen3")


def architecture_from_gguf(header: GGUFHeader, path: Path) -> Architecture:
    """Sizes as the GGUF's metadata states them; raises ModelFileError for what is not a Llama."""
    metadata = header.metadata
    if metadata.get("general.architecture") != "llama":
        raise ModelFileError(
            f"{path}: architecture {metadata.get('general.architecture')!r}; only 'llama' is read."
        )

    def number(name: str) -> Any:
        if f"llama.{name}" not in metadata:
            raise ModelFileError(f"{path}: metadata lacks llama.{name}.")
        return metadata[f"llama.{name}"]

    hidden_size, num_heads = number("embedding_length"), number("attention.head_count")
    head_dim = metadata.get("llama.attention.key_length", hidden_size // num_heads)
    return Architecture(
        num_layers=number("block_count"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=number("attention.head_count_kv"),
        head_dim=head_dim,
        ffn_size=number("feed_forward_length"),
        vocab_size=metadata.get("llama.vocab_size", len(metadata.get("tokenizer.ggml.tokens", ()))),
        context_length=number("context_length"),
        rope_theta=number("rope.freq_base"),
        rope_fraction=metadata.get("llama.rope.dimension_count", head_dim) / head_dim,
        # Stored as fp32: 1e-5 comes back as 9.99999974e-06.
        norm_eps=float(f"{number('attention.layer_norm_rms_epsilon'):.6g}"),
        tied_embeddings=all(entry.name != "output.weight" for entry in header.tensors),
    )


def family_from_config(config: Mapping[str, Any], name: str, denoiser: Mapping[str, Any]) -> Family:
    """The row for a Hugging Face config.json; `denoiser` is the adapter's denoiser.json, or empty.

    Raises ModelFileError for a model type or an option that our backbone does not compute.
    """
    model_type = config.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise ModelFileError(
            f"{name}: model_type {model_type!r} is not read; these are: {', '.join(_MODEL_TYPES)}."
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    refused = {
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
        "use_sliding_window": bool(config.get("use_sliding_window")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "attention_bias": bool(config.get("attention_bias")),
    }
    found = [key for key, bad in refused.items() if bad]
    if found:
        raise ModelFileError(f"{name}: config.json asks for {', '.join(found)}, which is not supported.")
    try:
        architecture = Architecture(
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config.get("num_key_value_heads", config["num_attention_heads"]),
            head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
            ffn_size=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            context_length=config["max_position_embeddings"],
            rope_theta=float(config.get("rope_theta") or rope.get("rope_theta", 10_000.0)),
            norm_eps=config.get("rms_norm_eps", 1e-6),
            qk_norm=model_type == "qwen3",
            qkv_bias=model_type == "qwen2",
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise ModelFileError(f"{name}: config.json lacks {error}.") from error
    return Family(name, architecture, _traits(config, denoiser))


def _traits(config: Mapping[str, Any], denoiser: Mapping[str, Any]) -> Traits:
    eos, context = config.get("eos_token_id"), denoiser.get("context", "causal")
    if context not in ("causal", "block", "full"):
        raise ModelFileError(f"denoiser.json: context {context!r}; allowed: 'causal', 'block', 'full'.")
    return Traits(
        context=context,
        shift=denoiser.get("shift", True),
        mask_token_id=denoiser.get("mask_token_id", NO_MASK_ID),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        block_grid=denoiser.get("block_grid", 0),
        gated=denoiser.get("gated", bool(denoiser)),
    )
