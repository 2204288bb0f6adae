"""Tensors as they lie on disk: GGUF, or safetensors in one file or in shards. Read one at a time.

Names are the checkpoint's own; `models/build.py` knows where each belongs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
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
from vermilion.models.gguf_file import GGUFHeader, TensorEntry
from vermilion.models.shares import Pieces
from vermilion.models.tensor_files import Shape, rotate_half_rows, shards

_CHUNK_ELEMENTS = 1 << 21
"""Weights dequantised at once per thread: 8 MB of fp32, so temporaries stay small and in cache."""
_THREADS = 4
_READ_TYPES = ("F64", "F32", "F16", "BF16")
"""What safetensors may hold; a quantised tensor needs more than a cast."""


@dataclass(frozen=True, slots=True)
class Home:
    """Memory for a stored tensor, or for some pieces of it."""

    tensor: Tensor
    pieces: Pieces | None = None


@dataclass(frozen=True, slots=True)
class TensorFolder:
    """Safetensors of one stem in a folder: `model.safetensors`, or all of its numbered shards."""

    path: Path
    stem: str = "model"

    def shapes(self) -> dict[str, Shape]:
        """Raises ModelFileError for a file that is missing or damaged, and for a type that is not read."""
        shapes = {}
        for path in shards(self.path, self.stem):
            with opened(path) as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    entry = file.get_slice(name)
                    if entry.get_dtype() not in _READ_TYPES:
                        allowed = ", ".join(_READ_TYPES)
                        raise ModelFileError(
                            f"{path}: {name} is stored as {entry.get_dtype()}; these are read: {allowed}. "
                            "Take a checkpoint that is not quantised."
                        )
                    shapes[name] = tuple(entry.get_shape())
        return shapes

    def fill(self, home_of: Callable[[str], Home | None]) -> Iterator[str]:
        """Copy every tensor to its home, in the home's dtype and device, and name it; without one it is left
        out, and no more is read than its home takes. A shard is let go before the next is opened."""
        for path in shards(self.path, self.stem):
            with opened(path) as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    home = home_of(name)
                    if home is None:
                        continue
                    if home.pieces is None:
                        home.tensor.copy_(file.get_tensor(name))
                    else:
                        home.tensor.copy_(home.pieces.of(file.get_slice(name)))
                    yield name

    def read(self, dtype: torch.dtype, device: torch.device | str) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in memory of its own."""
        for path in shards(self.path, self.stem):
            with opened(path) as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    # Without the copy one tensor would keep the whole shard mapped.
                    yield name, file.get_tensor(name).to(device=device, dtype=dtype, copy=True)


@dataclass(frozen=True, slots=True)
class GGUFTensors:
    """The tensors of a GGUF, dequantised."""

    path: Path
    header: GGUFHeader
    interleaved: Mapping[str, int]
    """Name to number of heads of tensors whose rows are put as Hugging Face has them."""

    def shapes(self) -> dict[str, Shape]:
        return {entry.name: entry.shape for entry in self.header.tensors}

    def fill(self, home_of: Callable[[str], Home | None]) -> Iterator[str]:
        """As a folder's; a few threads work ahead of the caller."""
        data = np.memmap(self.path, dtype=np.uint8, mode="r")

        def work(entry: TensorEntry, home: Home) -> str:
            heads = self.interleaved.get(entry.name, 0)
            if home.pieces is None:
                _dequantize(data, entry, heads, home.tensor)
            else:
                whole = torch.empty(entry.shape, dtype=home.tensor.dtype)
                _dequantize(data, entry, heads, whole)
                home.tensor.copy_(home.pieces.of(whole))
            return entry.name

        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            homes = ((entry, home_of(entry.name)) for entry in self.header.tensors)
            filled = [pool.submit(work, entry, home) for entry, home in homes if home is not None]
            yield from (future.result() for future in filled)


def _dequantize(data: np.memmap[Any, Any], entry: TensorEntry, rope_heads: int, tensor: Tensor) -> None:
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


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Raises ModelFileError where it is not sound."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: not a sound safetensors file ({error}).") from error
