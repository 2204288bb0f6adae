"""The model as the library's table: addresses of packed tensors beside the sizes of the architecture."""

from __future__ import annotations

from vermilion.models.families import Architecture
from vermilion.native.checkpoint_packing import NORMS, PRODUCTS
from vermilion.native.library import LayerStruct, ModelStruct, ProductStruct
from vermilion.native.packed_file import PackedFile


def model_table(packed: PackedFile, architecture: Architecture, mask_token_id: int) -> ModelStruct:
    """Points into `packed`, which must outlive it."""
    a = architecture
    layers = (LayerStruct * a.num_layers)(*(_layer(packed, index) for index in range(a.num_layers)))
    embedding = packed.matrix("embedding")
    return ModelStruct(
        num_layers=a.num_layers,
        hidden_size=a.hidden_size,
        num_heads=a.num_heads,
        num_kv_heads=a.num_kv_heads,
        head_dim=a.head_dim,
        ffn_size=a.ffn_size,
        vocab_size=a.vocab_size,
        rope_size=int(a.head_dim * a.rope_fraction),
        norm_eps=a.norm_eps,
        mask_token=mask_token_id,
        layers=layers,
        embedding=embedding,
        head=embedding if a.tied_embeddings else packed.matrix("head"),
        norm=packed.address("norm"),
        mask_embedding=packed.address("mask_embedding"),
        inverse_frequencies=packed.address("inverse_frequencies"),
        draft_down=packed.matrix("draft_down"),
        draft_up=packed.matrix("draft_up"),
    )


def _layer(packed: PackedFile, index: int) -> LayerStruct:
    layer = LayerStruct(**{name: packed.address(f"{index}.{name}") for name in NORMS})
    for product, parts in PRODUCTS.items():
        setattr(layer, product, _product(packed, f"{index}.{product}", len(parts)))
    return layer


def _product(packed: PackedFile, name: str, num_parts: int) -> ProductStruct:
    made = ProductStruct(denoiser=packed.low_rank(f"{name}.denoiser"))
    for part in range(num_parts):
        made.parts[part] = packed.matrix(f"{name}.{part}")
        made.noisy[part] = packed.matrix(f"{name}.noisy.{part}")
        made.bias[part] = packed.address(f"{name}.bias.{part}")
    return made
