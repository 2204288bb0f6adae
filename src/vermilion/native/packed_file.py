"""A model's weights as the kernels read them, in one file that later starts map into memory.

The file lies in `packed/` of the models' folder, named after the model and a digest of what it was made from.
Matrices keep a GGUF's own Q4_0, Q4_1 and Q8_0 blocks exactly; others are quantised (kernels/packing.cpp).
Shape letters: O outputs, I inputs, R rank.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vermilion.errors import ModelFileError
from vermilion.native import library
from vermilion.native.library import LowRankStruct, MatrixStruct
from vermilion.native.stored_sizes import Array, Axis, filled_up, run

_MAGIC = b"vermilion packed\n"
_FORMAT_VERSION = 3
_ALIGNMENT = 64
_FLOAT32 = 0
_MAX_HASHED_BYTES = 1 << 26
_PIECE_ELEMENTS = 1 << 20
"""Of a matrix that is packed at once: 4 MB as float32."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor to be packed, read a few rows at a time: float32 [O, I], or a GGUF's rows [O, bytes]."""

    shape: tuple[int, int]
    read: Callable[[int, int], Array]
    """The rows [first, end)."""
    kind: int = _FLOAT32
    """Of GGUF rows."""

    @classmethod
    def of(cls, rows: Array, kind: int = _FLOAT32, num_inputs: int = 0) -> Weight:
        """Of an array, in memory, a vector as [O, 1]; `num_inputs` of GGUF rows."""
        rows = rows if rows.ndim > 1 else rows[:, None]
        return cls((rows.shape[0], num_inputs or rows.shape[1]), lambda first, end: rows[first:end], kind)

    def floats(self) -> Weight:
        """The same in float32."""
        if self.kind == _FLOAT32:
            return self
        from gguf import GGMLQuantizationType, dequantize

        kind = GGMLQuantizationType(self.kind)
        return Weight(self.shape, lambda first, end: dequantize(self.read(first, end), kind))

    def numbers(self) -> Array:
        """All of it, flat."""
        return self.floats().read(0, self.shape[0]).reshape(-1)


class PackedFile:
    """Tensors by name, read in place."""

    def __init__(self, path: Path) -> None:
        """Raises ModelFileError for a file that is damaged."""
        try:
            self._data: Array = np.memmap(path, np.uint8, "r")
            start = int.from_bytes(self._data[len(_MAGIC) : len(_MAGIC) + 8].tobytes(), "little")
            if self._data[: len(_MAGIC)].tobytes() != _MAGIC:
                raise ValueError("another kind of file")
            self._entries: dict[str, dict[str, Any]] = json.loads(self._data[start:].tobytes())
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path}: damaged ({error}); delete it and start again.") from error
        self.size_bytes = self._data.size

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def matrix(self, name: str) -> MatrixStruct:
        """Empty where there is none of this name."""
        entry = self._entries.get(name)
        if entry is None:
            return MatrixStruct()
        tiles = self._data.ctypes.data + entry["offset"]
        return MatrixStruct(tiles, entry["outputs"], entry["inputs"], entry["bits"])

    def size_of(self, prefix: str) -> int:
        """Bytes of all matrices whose names begin so."""
        kernels = library.load()
        entries = (each for name, each in self._entries.items() if name.startswith(prefix) and "bits" in each)
        return sum(
            kernels.vermilion_packed_size(each["outputs"], each["inputs"], each["bits"]) for each in entries
        )

    @property
    def data(self) -> Array:
        """The whole file, as bytes."""
        return self._data

    def address(self, name: str) -> int | None:
        """Where an array of numbers begins; None where there is none of this name."""
        entry = self._entries.get(name)
        return None if entry is None else self._data.ctypes.data + entry["offset"]

    def number(self, name: str, default: float) -> float:
        """The only one of an array; `default` where there is none of this name."""
        entry = self._entries.get(name)
        return default if entry is None else float(self._data[entry["offset"] :][:4].view(np.float32)[0])

    def size(self, name: str) -> int:
        """How many numbers an array has."""
        return int(self._entries[name]["size"])

    def low_rank(self, name: str) -> LowRankStruct:
        made = LowRankStruct(self.matrix(f"{name}.down"))
        for part in range(library.NUM_PARTS):
            made.up[part] = self.matrix(f"{name}.up.{part}")
        return made


class PackWriter:
    """Writes tensors one behind the other; `finish` makes the file readable."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._entries: dict[str, dict[str, Any]] = {}
        file.write(_MAGIC + bytes(_ALIGNMENT - len(_MAGIC)))

    def matrix(
        self, name: str, weight: Weight, bits: int, outputs: Axis | None = None, inputs: Axis | None = None
    ) -> None:
        """`bits`: 4 or 8, as what float32 becomes. The axes say how it is filled up; without, at the end."""
        num_out, num_in = weight.shape
        outputs, inputs = outputs or Axis(num_out, num_out), inputs or run(num_in)
        if not inputs.is_filled:
            weight = weight.floats()
        self._begin(name, {"outputs": outputs.groups * outputs.stored, "inputs": inputs.total, "bits": bits})
        # Whole tiles at a time; where zeros come between the rows, all at once.
        step = num_out if outputs.stored != outputs.size else filled_up(_PIECE_ELEMENTS // num_in + 1)
        for first in range(0, num_out, step):
            rows = weight.read(first, min(first + step, num_out))
            if outputs.stored != outputs.size:
                rows = outputs.fill(rows, 0)
            rows = np.ascontiguousarray(inputs.fill(rows, 1) if weight.kind == _FLOAT32 else rows)
            pack(rows, weight.kind, inputs.total, bits).tofile(self._file)

    def numbers(self, name: str, values: Array) -> None:
        self._begin(name, {"size": values.size})
        np.ascontiguousarray(values).tofile(self._file)

    def low_rank(
        self,
        name: str,
        pairs: Sequence[tuple[Array, Array] | None],
        scale: float,
        axes: tuple[Sequence[Axis], Axis],
    ) -> None:
        """(A_RI, B_OR) of each part of a product, None where nothing is added to it; all of one rank. `axes`:
        outputs of each part, and inputs."""
        present = [pair for pair in pairs if pair is not None]
        if not present:
            return
        rank = filled_up(present[0][0].shape[0])
        down = np.zeros((len(pairs) * rank, axes[1].total), np.float32)
        for part, pair in enumerate(pairs):
            if pair is None:
                continue
            a_RI, b_OR = pair
            down[part * rank : part * rank + a_RI.shape[0]] = axes[1].fill(a_RI, 1)
            self.matrix(f"{name}.up.{part}", Weight.of(b_OR * np.float32(scale)), 8, axes[0][part])
        self.matrix(f"{name}.down", Weight.of(down), 8)

    def _begin(self, name: str, entry: Mapping[str, int]) -> None:
        self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
        self._entries[name] = {**entry, "offset": self._file.tell()}

    def finish(self) -> None:
        start = self._file.tell()
        self._file.write(json.dumps(self._entries).encode())
        self._file.seek(len(_MAGIC))
        self._file.write(start.to_bytes(8, "little"))
        self._file.flush()


def pack(rows: Array, kind: int, num_inputs: int, bits: int) -> Array:
    """Tiles of one matrix: kernels/model.h has their layout."""
    kernels = library.load()
    made: Array = np.empty(kernels.vermilion_packed_size(rows.shape[0], num_inputs, bits), np.uint8)
    refused = kernels.vermilion_pack(
        library.pointer(rows), kind, rows.shape[0], num_inputs, bits, library.pointer(made)
    )
    assert not refused, (kind, rows.shape, num_inputs, bits)
    return made


def digest(files: Sequence[Path], settings: str) -> str:
    """Names what a packed file was made from: the files' contents, of large ones size and time of change, for
    hashing a model takes longer than mapping its packed file."""
    made = hashlib.sha256(f"{settings} {_FORMAT_VERSION} {library.LAYOUT_VERSION}".encode())
    for file in sorted(files):
        facts = file.stat()
        made.update(f"{file.name} {facts.st_size}".encode())
        made.update(
            file.read_bytes() if facts.st_size <= _MAX_HASHED_BYTES else f"{facts.st_mtime_ns}".encode()
        )
    return made.hexdigest()[:16]


def cached(folder: Path, name: str, key: str, write: Callable[[PackWriter], None]) -> PackedFile:
    """The packed file of this name and key, written first where it is missing; older ones of the name go."""
    path = folder / f"{name}-{key}.bin"
    if path.is_file():
        return PackedFile(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = _written(folder, write)
    except OSError as error:
        raise ModelFileError(
            f"{folder}: the packed weights cannot be written ({error.strerror or error}); "
            "VERMILION_HOME names another folder."
        ) from error
    for old in folder.glob(f"{name}-{'?' * len(key)}.bin"):
        old.unlink(missing_ok=True)
    os.replace(made, path)
    return PackedFile(path)


def in_memory(write: Callable[[PackWriter], None]) -> PackedFile:
    """Packed tensors that no later start needs: a file that is gone once it is mapped."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return PackedFile(_written(Path(folder), write))


def _written(folder: Path, write: Callable[[PackWriter], None]) -> Path:
    """Written under a name of its own, so that two processes may do it at once."""
    handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            writer = PackWriter(file)
            write(writer)
            writer.finish()
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)
