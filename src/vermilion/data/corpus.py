"""Documents of token ids, on disk or in memory.

A corpus is a folder: `manifest.json`, and per shard `NAME.tokens` (little-endian uint16 or uint32, memory-
mapped) and `NAME.documents` (int64 pairs: end of the document in the shard, prompt tokens that are not
trained on).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vermilion.errors import ConfigError
from vermilion.text import read_json

MANIFEST = "manifest.json"
_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_DOCUMENT: np.dtype[Any] = np.dtype("<i8")
_SHARD_TOKENS = 1 << 26


@dataclass(frozen=True, slots=True)
class Document:
    """Ids of one text; the first `num_prompt` are given, not trained on."""

    ids: Sequence[int]
    num_prompt: int = 0


class Corpus:
    """Read access to the documents of a folder or of a list."""

    def __init__(self, shards: Sequence[tuple[Any, Any]]) -> None:
        """`shards`: (token ids, int [D, 2] of document end and prompt length)."""
        self._shards = [(tokens, documents) for tokens, documents in shards if len(documents)]
        self._first = np.cumsum([0, *(len(documents) for _, documents in self._shards)])

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Raises ConfigError for a folder that is not a sound corpus."""
        manifest = read_json(folder / MANIFEST)
        dtype = _DTYPES.get(manifest.get("dtype", ""))
        if dtype is None or not isinstance(manifest.get("shards"), list):
            raise ConfigError(f"{folder}: no corpus; it needs a {MANIFEST} with dtype and shards.")
        shards = []
        for shard in manifest["shards"]:
            name, sizes = shard["name"], (shard["tokens"], 2 * shard["documents"])
            paths = (folder / f"{name}.tokens", folder / f"{name}.documents")
            for path, kind, size in zip(paths, (dtype, _DOCUMENT), sizes, strict=True):
                found = path.stat().st_size if path.is_file() else 0
                if found != size * kind.itemsize:
                    raise ConfigError(f"{path}: {found} bytes; {MANIFEST} says {size * kind.itemsize}.")
            if shard["documents"]:
                tokens = np.memmap(paths[0], dtype, "r") if shard["tokens"] else np.empty(0, dtype)
                shards.append((tokens, np.fromfile(paths[1], _DOCUMENT).reshape(-1, 2)))
        return cls(shards)

    @classmethod
    def of(cls, documents: Iterable[Document]) -> Corpus:
        """In memory."""
        kept = list(documents)
        tokens = np.concatenate([np.empty(0, np.int64), *(np.asarray(d.ids, np.int64) for d in kept)])
        ends = np.cumsum([len(d.ids) for d in kept])
        return cls([(tokens, np.stack([ends, [d.num_prompt for d in kept]], 1))] if kept else [])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> Document:
        shard = int(np.searchsorted(self._first, index, "right")) - 1
        tokens, documents = self._shards[shard]
        local = index - int(self._first[shard])
        start = int(documents[local - 1, 0]) if local else 0
        end, num_prompt = (int(value) for value in documents[local])
        return Document(tokens[start:end].tolist(), num_prompt)

    def longest(self) -> int:
        """Tokens of the longest document; 0 for an empty corpus."""
        sizes = (np.diff(documents[:, 0], prepend=0).max() for _, documents in self._shards)
        return max((int(size) for size in sizes), default=0)

    def largest_id(self) -> int:
        """The largest token id in it; -1 for an empty corpus."""
        return max((int(tokens.max()) for tokens, _ in self._shards if len(tokens)), default=-1)


def write_corpus(folder: Path, documents: Iterable[Document], vocab_size: int) -> None:
    """Write a corpus that `Corpus.open` reads. The manifest is last: no incomplete corpus is opened."""
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    shards: list[dict[str, object]] = []
    tokens: list[int] = []
    table: list[tuple[int, int]] = []

    def flush() -> None:
        name = f"{len(shards):05d}"
        np.asarray(tokens, _DTYPES[dtype]).tofile(folder / f"{name}.tokens")
        np.asarray(table, _DOCUMENT).tofile(folder / f"{name}.documents")
        shards.append({"name": name, "tokens": len(tokens), "documents": len(table)})
        tokens.clear()
        table.clear()

    for document in documents:
        tokens.extend(document.ids)
        table.append((len(tokens), document.num_prompt))
        if len(tokens) >= _SHARD_TOKENS:
            flush()
    if table:
        flush()
    manifest = {"dtype": dtype, "vocab_size": vocab_size, "shards": shards}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
