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

_MAGIC = b"vermilion packed\n"
_FORMAT_VERSION = 1
_ALIGNMENT = 64
_BLOCK = 32
_FLOAT32 = 0
_MAX_HASHED_BYTES = 1 << 26
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix to be packed: float32 [O, I], or the rows of a GGUF tensor [O, bytes] of this kind."""

    rows: Array
    kind: int = _FLOAT32
    num_inputs: int = 0
    """Of GGUF rows."""


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

    def address(self, name: str) -> int | None:
        """Where an array of numbers begins; None where there is none of this name."""
        entry = self._entries.get(name)
        return None if entry is None else self._data.ctypes.data + entry["offset"]

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

    def matrix(self, name: str, weight: Weight, bits: int) -> None:
        """`bits`: 4 or 8, as what float32 becomes."""
        rows = np.ascontiguousarray(weight.rows)
        num_out, num_in = rows.shape[0], weight.num_inputs or rows.shape[1]
        packed, size = pack(rows, weight.kind, num_in, bits), (num_out, num_in)
        self._write(name, packed, {"outputs": size[0], "inputs": size[1], "bits": bits})

    def numbers(self, name: str, values: Array) -> None:
        self._write(name, np.ascontiguousarray(values), {})

    def low_rank(self, name: str, pairs: Sequence[tuple[Array, Array] | None], scale: float) -> None:
        """(A_RI, B_OR) of each part of a product, None where nothing is added to it; all of one rank."""
        present = [pair for pair in pairs if pair is not None]
        if not present:
            return
        num_in, rank = present[0][0].shape[1], -(-present[0][0].shape[0] // _BLOCK) * _BLOCK
        down = np.zeros((len(pairs) * rank, num_in), np.float32)
        for part, pair in enumerate(pairs):
            if pair is None:
                continue
            a_RI, b_OR = pair
            down[part * rank : part * rank + a_RI.shape[0]] = a_RI
            up = np.zeros((b_OR.shape[0], rank), np.float32)
            up[:, : b_OR.shape[1]] = b_OR * scale
            self.matrix(f"{name}.up.{part}", Weight(up), 8)
        self.matrix(f"{name}.down", Weight(down), 8)

    def _write(self, name: str, data: Array, entry: Mapping[str, int]) -> None:
        self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
        self._entries[name] = {**entry, "offset": self._file.tell()}
        data.tofile(self._file)

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
