"""Packs a checkpoint: which of its tensors the kernels want, under which names, in how many bits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from vermilion.models.catalog import ModelFiles
from vermilion.models.families import LLAMA, Architecture, Experts, LayerKind, ModelSpec
from vermilion.models.home import home
from vermilion.native.checkpoint_tensors import KEPT, CheckpointTensors
from vermilion.native.diffusion_packing import (
    BRANCH_NORMS,
    Take,
    pack_modulations,
    pack_self_conditioning,
)
from vermilion.native.packed_file import PackedFile, PackWriter, Weight, cached, digest, in_memory
from vermilion.native.stored_sizes import Axis, heads, product_axes, run

Quantization = Literal["q8", "q4"]
NORMS = {
    "attention_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
    "query_norm": "q_norm",
    "key_norm": "k_norm",
}
"""The kernels' names of a layer's norms, and the families'."""
_COMPUTED: dict[type, set[str]] = {
    Architecture: {
        "num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "ffn_size", "vocab_size",
        "context_length", "rope_theta", "rope_fraction", "rope_scaling", "norm_eps", "qk_norm",
        "joint_qk_norm", "value_norm", "qkv_bias", "output_bias", "ffn_bias", "tied_embeddings", "activation",
        "attention_scale", "embedding_scale", "logit_softcap", "query_growth", "query_period", "layers",
        "sandwich_norms", "self_conditioning", "condition_size", "head_bias", "rope_backwards",
        "late_qk_norm", "attention_gate", "embedding_norm",
    },
    LayerKind: {
        "window", "head_dim", "num_kv_heads", "rope_theta", "rope_scaling", "rope_fraction", "rotated",
        "values_are_keys", "experts", "dense",
    },
    Experts: {
        "num_experts", "num_active", "ffn_size", "shared_size", "router", "router_bias", "normalized",
        "scale", "num_groups", "num_active_groups", "scaled_router",
    },
}  # fmt: skip
"""Fields that the kernels know; any other must have its default."""


def obstacle(architecture: Architecture) -> str:
    """Why the kernels cannot run this architecture, for people; empty if they can."""
    kinds = architecture.layer_kinds()
    mixtures = [kind.experts for kind in kinds if kind.experts is not None]
    described: tuple[Architecture | LayerKind | Experts, ...] = (architecture, *kinds, *mixtures)
    for part in described:
        for field in fields(part):
            if field.name not in _COMPUTED[type(part)] and getattr(part, field.name) != field.default:
                return f"it does not compute {field.name} {getattr(part, field.name)!r}"
    if any(kind.dense and kind.experts and kind.experts.shared_size for kind in kinds):
        return "it does not compute a shared expert beside a dense feed-forward"
    if architecture.joint_qk_norm and architecture.late_qk_norm:
        return "it does not compute norms over all heads behind RoPE"
    return ""


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
    tensors = CheckpointTensors(files, spec)
    pack_base(writer, spec.architecture, tensors, bits, spec.name)
    if files.adapter is not None:
        _pack_denoiser(writer, spec.architecture, files.adapter, bits)
    if spec.traits.drafter and files.adapter is not None:
        from vermilion.models import drafter
        from vermilion.native.drafter_packing import pack_drafter

        pack_drafter(writer, spec.architecture, drafter.read(files.adapter, spec.architecture), tensors)


def _pack_denoiser(writer: PackWriter, architecture: Architecture, folder: Path, bits: int) -> None:
    # PyTorch reads it; a start that finds packed weights does without.
    import torch

    from vermilion.models import denoiser

    a = architecture
    hidden = run(a.hidden_size)
    beside = denoiser.read(folder, a, torch.float32, "cpu")
    pairs, scale, noisy = beside.pairs, beside.scale, beside.weights
    for name, parts, axes in products_with_axes(a):
        found = [pairs.get(part) for part in parts]
        arrays = [pair and (pair[0].numpy(), pair[1].numpy()) for pair in found]
        writer.low_rank(f"{name}.denoiser", arrays, scale, axes)
        for index, part in enumerate(parts):
            if f"{part}.weight" in noisy:
                weight = Weight.of(noisy[f"{part}.weight"].numpy())
                writer.matrix(f"{name}.noisy.{index}", weight, bits, axes[0][index], axes[1])
    if beside.mask_embedding_H is not None:
        writer.numbers("mask_embedding", hidden.fill(beside.mask_embedding_H.numpy(), 0))
    if beside.draft_head is not None:
        down, up = (part.numpy() for part in beside.draft_head)
        inputs = Axis(hidden.size, hidden.total, 2)
        writer.matrix("draft_down", Weight.of(run(down.shape[0]).fill(down, 0)), 8, inputs=inputs)
        writer.matrix("draft_up", Weight.of(up), 8, hidden)


def layer_products(architecture: Architecture) -> Iterator[tuple[str, list[str]]]:
    """(our name of a product, Hugging Face's names of its parts) through all layers. A shared expert stands
    where others have a dense feed-forward; no part, where a layer has neither."""
    for index, kind in enumerate(architecture.layer_kinds()):
        prefix, products = LLAMA.layer.format(index), dict(LLAMA.products)
        if kind.values_are_keys:
            products["qkv"] = products["qkv"][:2]
        if not kind.dense:
            shared = kind.experts is not None and kind.experts.shared_size
            products["gate_up"] = LLAMA.experts.shared_gate_up if shared else ()
            products["down"] = LLAMA.experts.shared_down if shared else ()
        if architecture.condition_size:
            products["gate_up"] = products["gate_up"][1:]
        for product, parts in products.items():
            yield f"{index}.{product}", [prefix + part for part in parts]


def products_with_axes(
    architecture: Architecture,
) -> Iterator[tuple[str, list[str], tuple[list[Axis], Axis]]]:
    """The same with (outputs of each part, inputs)."""
    kinds = architecture.layer_kinds()
    for name, parts in layer_products(architecture):
        index, product = name.split(".")
        yield name, parts, product_axes(architecture, kinds[int(index)], product)


def pack_base(writer: PackWriter, architecture: Architecture, take: Take, bits: int, model: str = "") -> None:
    """Everything but what a denoiser adds. `model` names it on a progress bar, where there is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    a, hidden = architecture, run(architecture.hidden_size)
    with Progress(
        console=Console(stderr=True), transient=True, disable=not model or not sys.stderr.isatty()
    ) as bar:
        layers = bar.track(range(a.num_layers), description=f"packing {model}")
        if a.condition_size:
            pack_modulations(writer, a, take)
        else:
            _pack_numbers(writer, "norm", take("model.norm.weight"), hidden)
        # Embeddings in fewer bits than eight cost more quality than time.
        _pack_matrix(writer, "embedding", take("model.embed_tokens.weight"), 8, None, hidden)
        if not a.tied_embeddings:
            _pack_matrix(writer, "head", take("lm_head.weight"), 8, None, hidden)
            _pack_numbers(writer, "head_bias", take("lm_head.bias"), run(a.vocab_size))
        _pack_numbers(writer, "embedding_norm", take("embedding_norm.weight"), hidden)
        if a.self_conditioning:
            pack_self_conditioning(writer, a, take, bits)
        products = list(products_with_axes(a))
        for index, kind in zip(layers, a.layer_kinds(), strict=True):
            for name, parts, (outputs, inputs) in products[4 * index : 4 * index + 4]:
                for number, part in enumerate(parts):
                    weight = take(f"{part}.weight")
                    _pack_matrix(writer, f"{name}.{number}", weight, bits, outputs[number], inputs)
                    _pack_numbers(writer, f"{name}.bias.{number}", take(f"{part}.bias"), outputs[number])
            if a.attention_gate:
                weight = take(f"{LLAMA.layer.format(index)}gate.weight")
                _pack_matrix(writer, f"{index}.gate", weight, bits, heads(a.num_heads, kind.head_dim), hidden)
            _pack_norms(writer, a, index, kind, take)
            if kind.experts is not None:
                _pack_experts(writer, index, kind.experts, take, (bits, hidden))


def _pack_matrix(
    writer: PackWriter, name: str, weight: Weight | None, bits: int, outputs: Axis | None, inputs: Axis
) -> None:
    assert weight is not None, name
    writer.matrix(name, weight, KEPT.get(weight.kind, bits), outputs, inputs)


def _pack_numbers(writer: PackWriter, name: str, weight: Weight | None, axis: Axis) -> None:
    if weight is not None:
        writer.numbers(name, axis.fill(weight.numbers(), 0))


def _pack_norms(
    writer: PackWriter, architecture: Architecture, index: int, kind: LayerKind, take: Take
) -> None:
    a, hidden = architecture, run(architecture.hidden_size)
    joint = a.joint_qk_norm
    axes = {
        "query_norm": heads(a.num_heads if joint else 1, kind.head_dim),
        "key_norm": heads(kind.num_kv_heads if joint else 1, kind.head_dim),
    }
    prefix = LLAMA.layer.format(index)
    for ours, theirs in NORMS.items():
        if theirs in axes or not a.condition_size:
            name = f"{prefix}{LLAMA.norms[theirs]}.weight"
            _pack_numbers(writer, f"{index}.{ours}", take(name), axes.get(ours, hidden))
    for name in BRANCH_NORMS:
        _pack_numbers(writer, f"{index}.{name}", take(f"{prefix}{name}.weight"), hidden)
    for name in ("scale", "noisy_scale"):
        _pack_numbers(writer, f"{index}.{name}", take(f"{prefix}{name}"), Axis(1, 1))


def _pack_experts(
    writer: PackWriter, index: int, experts: Experts, take: Take, stored: tuple[int, Axis]
) -> None:
    """`stored`: bits, and the axis of the hidden states."""
    prefix, names, (bits, hidden), wide = (
        LLAMA.layer.format(index),
        LLAMA.experts,
        stored,
        run(experts.ffn_size),
    )
    router = take(prefix + names.router)
    assert router is not None
    rows = router.floats().read(0, experts.num_experts)
    scale, expert_scale = (take(f"{prefix}experts.router.{name}") for name in ("scale", "expert_scale"))
    if scale is not None and expert_scale is not None:
        # What rows are scaled by on their way to the router is as good in its weight.
        rows = rows * scale.numbers() / np.sqrt(np.float32(hidden.size))
        writer.numbers(f"{index}.experts.expert_scale", expert_scale.numbers())
    writer.numbers(f"{index}.experts.router", hidden.fill(rows, 1))
    bias = take(prefix + names.router_bias)
    if bias is not None:
        writer.numbers(f"{index}.experts.router_bias", bias.numbers())
    gate, up = names.gate_up
    for part, name, outputs, inputs in (
        ("gate", gate, wide, hidden),
        ("up", up, wide, hidden),
        ("down", names.down[0], hidden, wide),
    ):
        for number in range(experts.num_experts):
            weight = take(f"{prefix}{name.format(number)}.weight")
            _pack_matrix(writer, f"{index}.experts.{part}.{number}", weight, bits, outputs, inputs)


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
        for name, parts, axes in products_with_axes(architecture):
            writer.low_rank(name, [numbers.get(part) for part in parts], scale, axes)

    return PackedAdapter(in_memory(write))
