"""Packs a checkpoint: which of its tensors the kernels want, under which names, in how many bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vermilion.models.catalog import ModelFiles
from vermilion.models.families import Architecture, ModelSpec
from vermilion.models.home import home
from vermilion.native.packed_file import Array, PackedFile, PackWriter, Weight, cached, digest, in_memory

Quantization = Literal["q8", "q4"]
PRODUCTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""The projections, by Hugging Face's names, that each product of a layer holds, in order."""
NORMS = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
}
_COMPUTED = {
    "num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "ffn_size", "vocab_size",
    "context_length", "rope_theta", "rope_fraction", "norm_eps", "qk_norm", "qkv_bias", "tied_embeddings",
}  # fmt: skip
"""Fields of an architecture that the kernels know; any other must have its default."""
_KEPT = {2: 4, 3: 4, 8: 8}
"""GGUF kinds whose blocks are kept as they are (Q4_0, Q4_1, Q8_0), and their bits."""


def obstacle(architecture: Architecture) -> str:
    """Why the kernels cannot run this architecture, for people; empty if they can."""
    a = architecture
    for field in fields(Architecture):
        if field.name not in _COMPUTED and getattr(a, field.name) != field.default:
            return f"it does not compute {field.name} {getattr(a, field.name)!r}"
    widths = {
        "hidden_size": a.hidden_size,
        "ffn_size": a.ffn_size,
        "heads x head_dim": a.num_heads * a.head_dim,
    }
    odd = [f"{name} {size}" for name, size in widths.items() if size % 32]
    odd += [f"head_dim {a.head_dim}"] if a.head_dim % 16 else []
    return f"sizes that are no multiple of its blocks: {', '.join(odd)}" if odd else ""


def open_packed(files: ModelFiles, spec: ModelSpec, quantization: Quantization) -> PackedFile:
    """The packed weights of a model, made now if they are not in the cache. Raises ModelFileError."""
    name = files.name.replace("/", "--")
    key = digest(list(_sources(files)), quantization)
    write = partial(_write, files, spec, 4 if quantization == "q4" else 8)
    return cached(home() / "packed", name, key, write)


def _sources(files: ModelFiles) -> Iterator[Path]:
    folders = [files.base] if files.kind == "folder" else []
    if files.kind == "gguf":
        yield files.base
    for folder in [*folders, *([files.adapter] if files.adapter else [])]:
        yield from (path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))


def _write(files: ModelFiles, spec: ModelSpec, bits: int, writer: PackWriter) -> None:
    # PyTorch reads checkpoints; a start that finds packed weights does without it.
    import torch

    from vermilion.models import denoiser
    from vermilion.models.build import base_tensors, build

    a, beside = spec.architecture, denoiser.Denoiser()
    if files.adapter is not None:
        beside = denoiser.read(files.adapter, a, torch.float32, "cpu")
    if files.kind == "gguf":
        take: Callable[[str], Weight | None] = partial(
            _from_gguf, files.base, _gguf_entries(files.base, spec), spec
        )
    else:
        take = partial(_from_tensors, base_tensors(build(replace(files, adapter=None)).model))
    pack_base(writer, a, take, bits)
    pairs, scale, noisy = beside.pairs, beside.scale, beside.weights
    for name, parts in layer_products(a):
        found = [pairs.get(part) for part in parts]
        arrays = [pair and (pair[0].numpy(), pair[1].numpy()) for pair in found]
        writer.low_rank(f"{name}.denoiser", arrays, scale)
        for index, part in enumerate(parts):
            if f"{part}.weight" in noisy:
                writer.matrix(f"{name}.noisy.{index}", Weight(noisy[f"{part}.weight"].numpy()), bits)
    if beside.mask_embedding_H is not None:
        writer.numbers("mask_embedding", beside.mask_embedding_H.numpy())
    if beside.draft_head is not None:
        down, up = (part.numpy() for part in beside.draft_head)
        rank = -down.shape[0] % 32
        writer.matrix("draft_down", Weight(np.pad(down, ((0, rank), (0, 0)))), 8)
        writer.matrix("draft_up", Weight(np.pad(up, ((0, 0), (0, rank)))), 8)


def layer_products(architecture: Architecture) -> Iterator[tuple[str, list[str]]]:
    """(our name of a product, Hugging Face's names of its parts) through all layers."""
    for layer in range(architecture.num_layers):
        for product, parts in PRODUCTS.items():
            yield f"{layer}.{product}", [f"model.layers.{layer}.{part}" for part in parts]


def pack_base(
    writer: PackWriter, architecture: Architecture, take: Callable[[str], Weight | None], bits: int
) -> None:
    """`take` gives a tensor by Hugging Face's name, None where the checkpoint has none."""
    a = architecture

    def matrix(name: str, source: str, own_bits: int) -> None:
        weight = take(source)
        assert weight is not None, source
        writer.matrix(name, weight, _KEPT.get(weight.kind, own_bits))

    def numbers(name: str, source: str) -> None:
        weight = take(source)
        if weight is not None:
            writer.numbers(name, weight.rows.astype(np.float32).reshape(-1))

    for name, parts in layer_products(a):
        for index, part in enumerate(parts):
            matrix(f"{name}.{index}", f"{part}.weight", bits)
            numbers(f"{name}.bias.{index}", f"{part}.bias")
    for layer in range(a.num_layers):
        for ours, theirs in NORMS.items():
            numbers(f"{layer}.{ours}", f"model.layers.{layer}.{theirs}.weight")
    numbers("norm", "model.norm.weight")
    # Embeddings in fewer bits than eight cost more quality than time.
    matrix("embedding", "model.embed_tokens.weight", 8)
    if not a.tied_embeddings:
        matrix("head", "lm_head.weight", 8)
    size = int(a.head_dim * a.rope_fraction)
    writer.numbers(
        "inverse_frequencies", 1.0 / a.rope_theta ** (np.arange(0, size, 2, dtype=np.float64) / size)
    )


def _from_tensors(tensors: dict[str, Any], name: str) -> Weight | None:
    tensor = tensors.get(name)
    return None if tensor is None else Weight(tensor.float().numpy())


def _gguf_entries(path: Path, spec: ModelSpec) -> dict[str, Any]:
    from vermilion.models.gguf_file import read_header

    assert spec.family.gguf is not None
    names = spec.family.gguf.names.in_llama(spec.architecture.num_layers)
    return {names.get(entry.name, entry.name): entry for entry in read_header(path).tensors}


def _from_gguf(path: Path, entries: dict[str, Any], spec: ModelSpec, name: str) -> Weight | None:
    """A tensor's own blocks where the kernels keep them, else its values in float32."""
    from gguf import GGMLQuantizationType, dequantize, quant_shape_to_byte_shape

    from vermilion.models.weights import rotate_half_rows

    entry = entries.get(name)
    if entry is None:
        return None
    kind = GGMLQuantizationType(entry.quantization)
    num_rows = int(np.prod(entry.shape[:-1]))
    row_bytes = quant_shape_to_byte_shape(entry.shape, kind)[-1]
    rows: Array = np.fromfile(path, np.uint8, num_rows * row_bytes, offset=entry.offset).reshape(
        num_rows, row_bytes
    )
    turned = {"q_proj": spec.architecture.num_heads, "k_proj": spec.architecture.num_kv_heads}
    heads = turned.get(name.split(".")[-2], 0)
    if heads and spec.family.gguf is not None and spec.family.gguf.interleaved:
        rows = rows[rotate_half_rows(num_rows, heads)]
    if kind in _KEPT:
        return Weight(rows, int(kind), entry.shape[-1])
    plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(kind)
    values = rows.view(plain) if plain else dequantize(rows, kind)
    return Weight(values.astype(np.float32))


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """A LoRA as the kernels read it, under the names of the layers' products."""

    packed: PackedFile


def read_adapter(folder: Path, architecture: Architecture) -> PackedAdapter:
    """A PEFT LoRA folder; raises ModelFileError, naming the tensor, where it does not fit the model."""
    import torch

    from vermilion.models.adapters import projections
    from vermilion.models.lora_folder import read_pairs

    pairs, scale = read_pairs(folder, projections(architecture), torch.float32, "cpu")
    numbers = {name: (a.numpy(), b.numpy()) for name, (a, b) in pairs.items()}

    def write(writer: PackWriter) -> None:
        for name, parts in layer_products(architecture):
            writer.low_rank(name, [numbers.get(part) for part in parts], scale)

    return PackedAdapter(in_memory(write))
