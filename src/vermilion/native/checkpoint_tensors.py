"""The tensors of a checkpoint under Hugging Face's Llama names, read from disk a few rows at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vermilion.errors import ModelFileError
from vermilion.models.catalog import ModelFiles
from vermilion.models.families import ModelSpec, TensorNames
from vermilion.models.gguf_file import TensorEntry, read_header
from vermilion.models.tensor_files import (
    Part,
    Shape,
    TensorPlace,
    check_shapes,
    parts,
    places,
    rotate_half_rows,
    shards,
)
from vermilion.native.packed_file import Weight
from vermilion.native.stored_sizes import Array

KEPT = {2: 4, 3: 4, 8: 8}
"""GGUF kinds whose blocks are kept as they are (Q4_0, Q4_1, Q8_0), and their bits."""
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""What safetensors may hold; a quantised tensor needs more than a cast."""
_PLAIN = {0: "<f4", 1: "<f2", 30: "<u2"}
"""GGUF kinds that are plain numbers: F32, F16, BF16."""


class CheckpointTensors:
    """Raises ModelFileError where the files are damaged or do not fit the architecture, naming a tensor."""

    def __init__(self, files: ModelFiles, spec: ModelSpec) -> None:
        self._path, self._spec = files.base, spec
        names, given = self._open(files)
        wanted, shapes = parts(spec.architecture, names, given)
        spare = {
            name
            for name in given
            if name == f"{names.head}.weight" or name.endswith(names.ignored) or name.startswith(names.unread)
        }
        check_shapes(self._path, {n: s for n, s in given.items() if n not in spare - shapes.keys()}, shapes)
        self._parts = {part.name: part for part in wanted}

    def _open(self, files: ModelFiles) -> tuple[TensorNames, Mapping[str, Shape]]:
        self._tensors: dict[str, TensorPlace] = {}
        self._entries: dict[str, TensorEntry] = {}
        if files.kind == "gguf":
            assert self._spec.family.gguf is not None
            self._entries = {entry.name: entry for entry in read_header(files.base).tensors}
            return self._spec.family.gguf.names, {n: each.shape for n, each in self._entries.items()}
        for path in shards(files.base, "model"):
            self._tensors |= places(path)
        for name, place in self._tensors.items():
            if place.dtype not in _TYPES:
                raise ModelFileError(
                    f"{place.path}: {name} is stored as {place.dtype}; these are read: {', '.join(_TYPES)}. "
                    "Take a checkpoint that is not quantised."
                )
        return self._spec.family.names, {n: each.shape for n, each in self._tensors.items()}

    def __call__(self, name: str) -> Weight | None:
        """A tensor by its Llama name, None where the architecture has none; vectors are [O, 1]."""
        part = self._parts.get(name)
        if part is None:
            return None
        return self._of_gguf(part) if self._entries else self._of_folder(part)

    def _of_folder(self, part: Part) -> Weight:
        place, num_in = self._tensors[part.published], part.shape[1] if len(part.shape) > 1 else 1
        stored = np.dtype(_TYPES[place.dtype])
        start = place.offset + part.first_row * num_in * stored.itemsize

        def read(first: int, end: int) -> Array:
            offset = start + first * num_in * stored.itemsize
            values = np.fromfile(place.path, stored, (end - first) * num_in, offset=offset)
            return _floats(values, place.dtype == "BF16").reshape(-1, num_in)

        return Weight((part.shape[0], num_in), read)

    def _of_gguf(self, part: Part) -> Weight:
        """A tensor's own blocks where the kernels keep them, else its values in float32."""
        from gguf import GGMLQuantizationType, dequantize, quant_shape_to_byte_shape

        entry, num_in = self._entries[part.published], part.shape[1] if len(part.shape) > 1 else 1
        kind = GGMLQuantizationType(entry.quantization)
        row_bytes = quant_shape_to_byte_shape((part.shape[0], num_in), kind)[-1]
        data = np.memmap(self._path, np.uint8, "r")
        start = entry.offset + part.first_row * row_bytes
        end = start + part.shape[0] * row_bytes
        if end > data.size:
            raise ModelFileError(f"Tensor {entry.name} runs past the end of the file; pull the model again.")
        raw, order = data[start:end].reshape(-1, row_bytes), self._order(part)

        def read(first: int, end: int) -> Array:
            rows = np.array(raw[first:end] if order is None else raw[order[first:end]])
            if kind in KEPT:
                return rows
            if kind in _PLAIN:
                return _floats(rows.view(_PLAIN[kind]), kind == GGMLQuantizationType.BF16)
            return dequantize(rows, kind)

        return Weight((part.shape[0], num_in), read, int(kind) if kind in KEPT else 0)

    def _order(self, part: Part) -> np.ndarray[Any, Any] | None:
        """The file's row for each of ours, where it interleaves the halves of heads."""
        a, gguf = self._spec.architecture, self._spec.family.gguf
        turned = {"q_proj": a.num_heads, "k_proj": a.num_kv_heads}
        heads = turned.get(part.name.split(".")[-2], 0)
        if not heads or gguf is None or not gguf.interleaved:
            return None
        return rotate_half_rows(part.shape[0], heads)


def _floats(values: Array, bfloat16: bool) -> Array:
    """In float32; `bfloat16` of its bits."""
    if bfloat16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
