"""What one row of the family table says, and what a checkpoint makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vermilion.models.families.architecture import Architecture, LayerKind
from vermilion.models.families.family_presets import MAX_BLOCK_LENGTH, Presets, default_preset, presets_for
from vermilion.models.families.layer_rules import Config, sliding_layers
from vermilion.models.families.names import GGUF, LLAMA, TensorNames
from vermilion.models.families.traits import Traits

HUGGING_FACE: Mapping[str, str] = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "rope_fraction": "partial_rotary_factor",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
    "activation": "hidden_act",
    "qkv_bias": "attention_bias",
    "output_bias": "attention_bias",
    "ffn_bias": "mlp_bias",
    "mask_token_id": "mask_token_id",
    "eos_token_ids": "eos_token_id",
    "delete_token_id": "delete_token_id",
    "split_token_id": "split_token_id",
    "expand_token_id": "expand_token_id",
}
"""Field of `Architecture` or `Traits` to the key of config.json that gives it, as most families have them."""


def no_fields(config: Config) -> Mapping[str, Any]:
    """Nothing follows."""
    return {}


@dataclass(frozen=True, slots=True)
class GGUFKind:
    """How GGUF files keep a family."""

    architecture: str
    """`general.architecture`, also the prefix of the sizes' keys."""
    names: TensorNames = GGUF
    interleaved: bool = False
    """Whether the two rotated halves of a query or key head lie as pairs; Hugging Face keeps them apart."""


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table: a published kind of checkpoint."""

    name: str
    model_types: tuple[str, ...]
    """Values of config.json's `model_type`."""
    where: Config = field(default_factory=dict)
    """Further entries of config.json that tell it from another family of the same type."""
    marks: tuple[str, ...] = ()
    """Else one of these, in the checkpoint's name or in what its config says of its code, tells them apart;
    in small letters without signs."""
    keys: Mapping[str, str] = field(default_factory=lambda: HUGGING_FACE)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Architecture` that its code has and its config does not say."""
    inner: str = ""
    """Entry of its config.json that holds those of the text model; empty where they are the whole."""
    derived: Callable[[Config], Mapping[str, Any]] = no_fields
    """Fields of `Architecture` that follow from entries of its config."""
    layers: Callable[[Config], tuple[LayerKind, ...]] = sliding_layers
    names: TensorNames = LLAMA
    gguf: GGUFKind | None = None
    traits: Traits | None = None
    """How it denoises, where its config does not say otherwise; None for an autoregressive family, whose
    traits a denoiser beside it gives."""
    presets: Presets = field(default_factory=dict)
    """Empty: those of its traits (`presets_for`)."""
    default_preset: str = ""
    """Empty: `lossless` where there is one, else `balanced`."""
    page_multiple: int = 1
    """What a page of its cache is a multiple of, besides its block length."""
    chat_template: str = ""
    """Jinja source for checkpoints that come without one."""

    def describes(self, config: Config, name: str) -> bool:
        """Whether a checkpoint of this name, with this config.json, is of this family."""
        if config.get("model_type") not in self.model_types:
            return False
        own_name = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
        said = f"{own_name} {config.get('architectures')} {config.get('auto_map')}".lower()
        said = "".join(character for character in said if character.isalnum() or character == " ")
        return all(config.get(key) == value for key, value in self.where.items()) and (
            not self.marks or any(mark in said for mark in self.marks)
        )


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is known of one checkpoint before its tensors are read."""

    name: str
    architecture: Architecture
    traits: Traits
    family: Family
    block_length: int = 0
    """Longest block that its denoiser was trained on; 0: not known."""

    @property
    def presets(self) -> Presets:
        """Its decodings by name."""
        if not self.family.presets:
            return presets_for(self.traits, self.block_length)
        longest, grid = self.block_length or MAX_BLOCK_LENGTH, self.traits.block_grid
        return {
            name: replace(preset, block_length=grid or min(preset.block_length, longest))
            for name, preset in self.family.presets.items()
        }

    @property
    def default_preset(self) -> str:
        return self.family.default_preset or default_preset(self.presets)

    @property
    def is_autoregressive(self) -> bool:
        """Whether it has no denoiser."""
        return not self.traits.denoises
