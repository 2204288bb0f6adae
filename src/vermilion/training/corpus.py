"""Documents of token ids, on disk or in memory, and the JSON Lines they may come from.

A corpus is a folder: `manifest.json`, and per shard `NAME.tokens` (little-endian uint16 or uint32, memory-
mapped) and `NAME.documents` (int64 pairs: end of the document in the shard, prompt tokens that are not
trained on).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vermilion.errors import BadRequest, ConfigError
from vermilion.text import ChatTemplate, Tokenizer, read_json

MANIFEST = "manifest.json"
_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_DOCUMENT: np.dtype[Any] = np.dtype("<i8")
_SHARD_TOKENS = 1 << 26
_MOST_REPORTED = 5


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

    def largest_id(self) -> int:
        """The largest token id in it; -1 for an empty corpus."""
        return max((int(tokens.max()) for tokens, _ in self._shards if len(tokens)), default=-1)


def write_corpus(folder: Path, documents: Iterable[Document], vocab_size: int) -> None:
    """Write a corpus that `Corpus.open` reads; the manifest last, so that half a corpus is none."""
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


def read_answers(file: Path, tokenizer: Tokenizer, template: ChatTemplate) -> list[Document]:
    """The documents of a JSON Lines file: {"prompt": ..., "response": ...} or {"messages": [...]}, where
    the last message is the assistant's and the only one trained on; or {"prefix": ..., "response": ...},
    where the response goes on with a raw text. Each ends in the tokenizer's EOS, unless its
    "finish_reason" is "length": it was cut, and no end is to be learnt from it.

    Raises ConfigError that names every bad line (the first few in full).
    """
    documents, refused = [], []
    try:
        # Not splitlines(): JSON may hold U+2028 and its like.
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            documents.append(_document(json.loads(line), tokenizer, template))
        except (ValueError, BadRequest) as error:
            refused.append(f"line {number}: {error}")
    if refused:
        shown = "\n  ".join(refused[:_MOST_REPORTED])
        rest = len(refused) - _MOST_REPORTED
        more = f"\n  and {rest} more" if rest > 0 else ""
        raise ConfigError(
            f"{file}: {len(refused)} of {sum(map(bool, lines))} lines are no example:\n  {shown}{more}"
        )
    if not documents:
        raise ConfigError(f"{file}: holds no example.")
    return documents


def _messages(row: Any) -> list[Mapping[str, str]]:
    """Raises ValueError saying what is wrong."""
    if not isinstance(row, Mapping):
        raise ValueError("not a JSON object")
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list) or not messages:
            raise ValueError("messages must be a list that is not empty")
    elif "prompt" in row and "response" in row:
        messages = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["response"]},
        ]
    else:
        raise ValueError("needs prompt and response, or messages")
    for message in messages:
        whole = isinstance(message, Mapping) and isinstance(message.get("role"), str)
        if not whole or not isinstance(message.get("content"), str):
            raise ValueError("every message needs a role and a content, both text")
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"]:
        raise ValueError("the last message must be the assistant's, and not empty")
    return messages


def _document(row: Any, tokenizer: Tokenizer, template: ChatTemplate) -> Document:
    """Raises ValueError saying what is wrong."""
    if not tokenizer.eos_token_ids:
        raise ConfigError("The model names no end-of-sequence token, so that an answer cannot end.")
    if isinstance(row, Mapping) and "prefix" in row:
        given, answer = row["prefix"], row.get("response")
        if not (isinstance(given, str) and isinstance(answer, str) and given and answer):
            raise ValueError("prefix and response must be text that is not empty")
        prompt = tokenizer.encode(given)
    else:
        messages = _messages(row)
        prompt, answer = template.encode(messages[:-1], tokenizer), messages[-1]["content"]
    end = [] if row.get("finish_reason") == "length" else [tokenizer.eos_token_ids[0]]
    return Document([*prompt, *tokenizer.encode(answer), *end], len(prompt))
