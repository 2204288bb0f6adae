"""Reads a checkpoint's tensors: GGUF or Hugging Face folder, and the denoiser adapter beside it.

Names are those of Hugging Face's Llama (`model.layers.0.self_attn.q_proj.weight`) whatever the source.
Shape letters: O outputs, I inputs, R adapter rank, H hidden.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vermilion.errors import ModelFileError
from vermilion.models.catalog import ModelFiles
from vermilion.models.configuration import spec_of
from vermilion.models.denoiser_file import DenoiserFile
from vermilion.models.families import Architecture, ModelSpec
from vermilion.models.gguf_file import TensorEntry, read_header
from vermilion.text import read_json

_CHUNK_ELEMENTS = 1 << 21
"""Weights dequantised at once per thread: 8 MB of fp32, so temporaries stay small and in cache."""
_GGUF_MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_GGUF_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_FUSED = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Checkpoint:
    """Everything a model is built from; all tensors have the dtype and device asked for."""

    spec: ModelSpec
    tensors: dict[str, Tensor]
    adapter: dict[str, tuple[Tensor, Tensor]] | None
    """Module name (`model.layers.0.self_attn.q_proj`) to (A_RI, B_OR); noisy rows add scale * x A^T B^T."""
    adapter_scale: float
    """alpha / rank; 0 without an adapter."""
    mask_embedding_H: Tensor | None
    """Stands in for the embedding of the mask id in noisy rows."""
    noisy: dict[str, Tensor] | None = None
    """The projections of noisy rows, by the names of the base's, where they have a set of their own."""
    draft_head: tuple[Tensor, Tensor] | None = None
    """(down [K, 2H], up [H, K]), where there is one."""


def load(
    files: ModelFiles, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Read a model; raises ModelFileError where files and family disagree or a format is not supported."""
    spec = spec_of(files)
    tensors = (_load_gguf if files.kind == "gguf" else _load_folder)(files, spec, dtype, device)
    return with_denoiser(files, Checkpoint(spec, tensors, None, 0.0, None), dtype, device)


def with_denoiser(
    files: ModelFiles, base: Checkpoint, dtype: torch.dtype, device: torch.device | str
) -> Checkpoint:
    """`base` and the denoiser that lies beside it, if one does; raises ModelFileError where they disagree."""
    spec, tensors = base.spec, base.tensors
    if files.adapter is None:
        return base
    mask = _mask_embedding(files.adapter, spec, dtype, device)
    head = _draft_head(files.adapter, spec, dtype, device)
    kind = DenoiserFile.read(files.adapter).weights
    if kind == "lora":
        adapter, scale = load_adapter(files.adapter, spec.architecture, dtype, device)
        return Checkpoint(spec, tensors, adapter, scale, mask, draft_head=head)
    noisy = _load_noisy(files.adapter, spec.architecture, dtype, device) if kind == "copy" else None
    return Checkpoint(spec, tensors, None, 0.0, mask, noisy, head)


def load_adapter(
    folder: Path, architecture: Architecture, dtype: torch.dtype, device: torch.device | str
) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """A PEFT LoRA folder as ({module: (A_RI, B_OR)}, alpha / rank)."""
    config = _required_json(folder / "adapter_config.json")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    unsupported = [
        key for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern") if config.get(key)
    ]
    if config.get("peft_type") != "LORA" or not rank or not alpha or unsupported:
        raise ModelFileError(
            f"{folder}: only a plain LoRA with one rank and alpha is read; given peft_type "
            f"{config.get('peft_type')!r}, r {rank!r}, lora_alpha {alpha!r}"
            + (f", and {', '.join(unsupported)}." if unsupported else ".")
        )
    shapes = {
        name.removesuffix(".weight"): shape
        for name, shape in expected_shapes(architecture).items()
        if name.endswith("_proj.weight")
    }
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _read_safetensors(_shards(folder, "adapter_model"), dtype, device):
        module, _, side = name.removeprefix(_PEFT_PREFIX).removesuffix(".weight").rpartition(".lora_")
        if module not in shapes or side not in ("A", "B"):
            raise ModelFileError(f"{folder}: tensor {name!r} fits no projection of this model.")
        num_out, num_in = shapes[module]
        wanted = (rank, num_in) if side == "A" else (num_out, rank)
        _check_shape(folder, name, tuple(tensor.shape), wanted)
        pairs.setdefault(module, {})[side] = tensor
    halves = sorted(module for module, pair in pairs.items() if len(pair) != 2)
    if halves or not pairs:
        raise ModelFileError(
            f"{folder}: no full lora_A and lora_B pair for {', '.join(halves) or 'any module'}."
        )
    return {module: (pair["A"], pair["B"]) for module, pair in pairs.items()}, alpha / rank


def _load_noisy(
    folder: Path, architecture: Architecture, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Tensor]:
    wanted = {
        name: shape for name, shape in expected_shapes(architecture).items() if name.endswith("_proj.weight")
    }
    tensors = dict(_read_safetensors(_shards(folder, "model"), dtype, device))
    _check_shapes(folder, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, wanted)
    return tensors


def expected_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this architecture must hold, and its shape."""
    a = architecture
    query, key = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (query, a.hidden_size),
        "self_attn.k_proj.weight": (key, a.hidden_size),
        "self_attn.v_proj.weight": (key, a.hidden_size),
        "self_attn.o_proj.weight": (a.hidden_size, query),
        "mlp.gate_proj.weight": (a.ffn_size, a.hidden_size),
        "mlp.up_proj.weight": (a.ffn_size, a.hidden_size),
        "mlp.down_proj.weight": (a.hidden_size, a.ffn_size),
        "input_layernorm.weight": (a.hidden_size,),
        "post_attention_layernorm.weight": (a.hidden_size,),
    }
    if a.qkv_bias:
        layer |= {f"self_attn.{name}_proj.bias": (query if name == "q" else key,) for name in "qkv"}
    if a.qk_norm:
        layer |= {"self_attn.q_norm.weight": (a.head_dim,), "self_attn.k_norm.weight": (a.head_dim,)}
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (a.vocab_size, a.hidden_size),
        "model.norm.weight": (a.hidden_size,),
    }
    if not a.tied_embeddings:
        shapes["lm_head.weight"] = (a.vocab_size, a.hidden_size)
    shapes |= {f"model.layers.{i}.{name}": s for i in range(a.num_layers) for name, s in layer.items()}
    return shapes


def _load_gguf(
    files: ModelFiles, spec: ModelSpec, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Tensor]:
    header, wanted = read_header(files.base), spec.architecture
    interleaved = spec.family.gguf is not None and spec.family.gguf.interleaved
    entries = {hugging_face_name(entry.name): entry for entry in header.tensors}
    shapes = {name: entry.shape for name, entry in entries.items()}
    _check_shapes(files.base, shapes, expected_shapes(wanted))
    data = np.memmap(files.base, dtype=np.uint8, mode="r")
    homes = _side_by_side(shapes, dtype, device)

    def read(item: tuple[str, TensorEntry]) -> tuple[str, Tensor]:
        name, entry = item
        turned = {"q_proj": wanted.num_heads, "k_proj": wanted.num_kv_heads} if interleaved else {}
        heads = turned.get(name.split(".")[-2], 0)
        return name, _dequantize(data, entry, heads, homes[name])

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return dict(pool.map(read, entries.items()))


def _side_by_side(
    shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device | str
) -> dict[str, Tensor]:
    """Uninitialised tensors of these shapes. Those that the backbone fuses are neighbours in one buffer, so
    that fusing them copies nothing."""
    homes: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name in homes:
            continue
        parts = next((parts for parts in _FUSED if name.endswith(f"{parts[0]}.weight")), None)
        if parts is None:
            if not any(name.endswith(f"{part}.weight") for parts in _FUSED for part in parts):
                homes[name] = torch.empty(shape, dtype=dtype, device=device)
            continue
        names = [name.replace(parts[0], part) for part in parts]
        sizes = [shapes[each][0] for each in names]
        whole = torch.empty(sum(sizes), shape[1], dtype=dtype, device=device)
        homes.update(zip(names, torch.split(whole, sizes), strict=True))
    return homes


def _dequantize(data: np.memmap[Any, Any], entry: TensorEntry, rope_heads: int, tensor: Tensor) -> Tensor:
    """Fill `tensor` chunk by chunk, so that no second full-size copy exists."""
    from gguf import GGMLQuantizationType, dequantize, quant_shape_to_byte_shape

    kind = GGMLQuantizationType(entry.quantization)
    num_rows = int(np.prod(entry.shape[:-1]))
    row_bytes = quant_shape_to_byte_shape(entry.shape, kind)[-1]
    end = entry.offset + num_rows * row_bytes
    if end > data.size:
        raise ModelFileError(f"Tensor {entry.name} runs past the end of the file; pull the model again.")
    raw = data[entry.offset : end].reshape(num_rows, row_bytes)
    if rope_heads:
        raw = raw[rotate_half_rows(num_rows, rope_heads)]
    rows, step = tensor.view(num_rows, entry.shape[-1]), max(1, _CHUNK_ELEMENTS // entry.shape[-1])
    unquantized = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(kind)
    for start in range(0, num_rows, step):
        piece = np.array(raw[start : start + step])
        values = piece.view(unquantized) if unquantized else dequantize(piece, kind)
        rows[start : start + step] = torch.from_numpy(values)
    return tensor


def rotate_half_rows(num_rows: int, num_heads: int) -> np.ndarray[Any, Any]:
    """Which GGUF row each Hugging Face row of a q or k projection is.

    GGUF interleaves the two rotated halves of a head (pairs are neighbours); Hugging Face keeps them apart.
    """
    return np.arange(num_rows).reshape(num_heads, -1, 2).swapaxes(1, 2).reshape(-1)


def hugging_face_name(name: str) -> str:
    if name in _GGUF_TOP:
        return _GGUF_TOP[name]
    _, layer, module, kind = [*name.split("."), "", "", ""][:4]
    return f"model.layers.{layer}.{_GGUF_MODULES.get(module, module)}.{kind}"


def _load_folder(
    files: ModelFiles, spec: ModelSpec, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Tensor]:
    tensors = dict(_read_safetensors(_shards(files.base, "model"), dtype, device))
    if spec.architecture.tied_embeddings:
        tensors.pop("lm_head.weight", None)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _check_shapes(files.base, shapes, expected_shapes(spec.architecture))
    return tensors


def _mask_embedding(
    folder: Path, spec: ModelSpec, dtype: torch.dtype, device: torch.device | str
) -> Tensor | None:
    path = folder / "denoiser.safetensors"
    if not path.is_file():
        return None
    tensors = dict(_read_safetensors([path], dtype, device))
    if "mask_embedding" not in tensors:
        raise ModelFileError(f"{path}: holds no mask_embedding.")
    _check_shape(
        path, "mask_embedding", tuple(tensors["mask_embedding"].shape), (spec.architecture.hidden_size,)
    )
    return tensors["mask_embedding"]


def _draft_head(
    folder: Path, spec: ModelSpec, dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, Tensor] | None:
    path = folder / "draft_head.safetensors"
    if not path.is_file():
        return None
    tensors = dict(_read_safetensors([path], dtype, device))
    if sorted(tensors) != ["down", "up"]:
        raise ModelFileError(f"{path}: holds {', '.join(sorted(tensors))}; needed: down, up.")
    size, rank = spec.architecture.hidden_size, tensors["down"].shape[0]
    _check_shape(path, "down", tuple(tensors["down"].shape), (rank, 2 * size))
    _check_shape(path, "up", tuple(tensors["up"].shape), (size, rank))
    return tensors["down"], tensors["up"]


def _shards(folder: Path, stem: str) -> list[Path]:
    """`stem`.safetensors, or all of its numbered parts."""
    whole = folder / f"{stem}.safetensors"
    if whole.is_file():
        return [whole]
    parts = sorted(folder.glob(f"{stem}-*-of-*.safetensors"))
    if not parts:
        pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
        note = f" {pickles[0]} is a pickle, which can run code when read: convert it." if pickles else ""
        raise ModelFileError(f"{folder}: no {stem}.safetensors.{note}")
    total = parts[0].stem.rpartition("-")[2]
    if not total.isdecimal() or len(parts) != int(total):
        raise ModelFileError(f"{folder}: {len(parts)} parts of {stem}-*-of-{total}.safetensors are here.")
    return parts


def _read_safetensors(
    paths: list[Path], dtype: torch.dtype, device: torch.device | str
) -> Iterator[tuple[str, Tensor]]:
    for path in paths:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                yield name, file.get_tensor(name).to(device=device, dtype=dtype)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: not a sound safetensors file ({error}).") from error


def _check_shapes(
    path: Path, given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or unknown:
        parts = [
            f"{len(names)} {kind}, such as {names[0]}"
            for kind, names in (("missing", missing), ("unknown", unknown))
            if names
        ]
        raise ModelFileError(f"{path}: the tensors do not fit the architecture: {'; '.join(parts)}.")
    for name, shape in wanted.items():
        _check_shape(path, name, given[name], shape)


def _check_shape(path: Path, name: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if given != wanted:
        raise ModelFileError(f"{path}: {name} has shape {list(given)}, expected {list(wanted)}.")


def _required_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelFileError(f"{path} is missing.")
    return read_json(path)
