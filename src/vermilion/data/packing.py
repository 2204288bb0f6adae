"""Rows packed from documents; the reading position is a value. Shapes: B rows, L positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vermilion.data.corpus import Corpus, Document
from vermilion.data.fim import rearranged
from vermilion.errors import ConfigError

MAX_FITTED_LENGTH = 1024
"""Tokens of a row whose length is left to the data."""
_PADDING = -1
_GAP = 1
"""Sets the draws of gaps apart from the others of a seed."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Packed rows, all [B, L]."""

    ids_BL: Tensor
    document_BL: Tensor
    """Counted from 0 in each row; -1 is padding."""
    position_BL: Tensor
    """From 0 in each document."""
    weight_BL: Tensor
    """float32: 1 for tokens to train on, 0 for prompts and padding."""
    fill_BL: Tensor
    """bool: copies of EOS behind a document's own."""

    def rows(self, start: int, end: int) -> TokenBatch:
        """The rows [start, end)."""
        return TokenBatch(*(getattr(self, field.name)[start:end] for field in fields(self)))

    def columns(self, end: int) -> TokenBatch:
        """The positions [0, end) of every row."""
        return TokenBatch(*(getattr(self, field.name)[:, :end] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class DataSource:
    """One corpus of a recipe."""

    path: Path
    """A corpus folder, or a JSON Lines file of prompts and responses."""
    share: float = 1.0
    """Of the rows, relative to the other sources."""


@dataclass(frozen=True, slots=True)
class DataState:
    """The reading position."""

    rows: int = 0
    """Rows drawn so far, over all sources."""
    cursors: tuple[tuple[int, int, int], ...] = ()
    """Per source: epoch, index in that epoch's order, tokens of that document already used."""


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What is read, and how rows are cut from it."""

    sources: tuple[DataSource, ...] = ()
    length: int = 256
    """Tokens of a row; 0: the longest document's, from 256 to 1024."""
    held_out: int = 8
    """Documents at the start of each source that are kept for validation; -1: a tenth, at most 16."""
    seed: int = 0
    validation: tuple[DataSource, ...] = ()
    """All of their documents are for validation; the shares say nothing."""
    fim: float = 0.0
    """Share of the texts without a prompt that become a gap to fill (`fim.py`), cut to a row."""
    fim_token_ids: tuple[int, ...] = ()
    """Before the row, the suffix and the prefix, and behind the middle, of gaps made here or given: three
    tokens of no other use and an end. An adapter that is trained with them gets a fim.json."""

    def __post_init__(self) -> None:
        if any(source.share <= 0 for source in self.sources):
            raise ConfigError("data.sources: every share must be above 0.")
        if (self.length < 2 and self.length) or self.held_out < -1:
            raise ConfigError("data: length must be at least 2, held_out at least 0 (or -1).")
        if not 0 <= self.fim <= 1 or (self.fim and len(set(self.fim_token_ids)) != 4):
            raise ConfigError("data: fim is a share, 0 to 1, and needs four different fim_token_ids.")


@dataclass(frozen=True, slots=True)
class Dataset:
    """The opened corpora of a DataConfig, with what the model adds."""

    config: DataConfig
    corpora: tuple[Corpus, ...]
    validation: tuple[Corpus, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    num_fill: int = 0
    """Copies of EOS put behind a document that ends in one: all that a block may hold behind it."""
    line_breaks: frozenset[int] = frozenset()
    """Tokens that end a line; for gaps."""

    def __post_init__(self) -> None:
        if not self.corpora:
            raise ConfigError("data.sources: at least one is needed, such as [{ path = 'answers.jsonl' }].")
        for source, corpus in zip(self.config.sources, self.corpora, strict=True):
            if len(corpus) <= self.num_held_out(corpus):
                raise ConfigError(
                    f"{source.path}: {len(corpus)} documents, of which data.held_out keeps "
                    f"{self.num_held_out(corpus)}; nothing is left to train on."
                )

    def num_held_out(self, corpus: Corpus) -> int:
        """Documents at the start of a source that are not trained on."""
        if self.config.held_out >= 0:
            return self.config.held_out
        return 0 if self.validation else min(16, len(corpus) // 10)

    def rows_of_an_epoch(self) -> int:
        """Rows in which every document of every source has been read once, the sources side by side."""
        total = 0
        for source in range(len(self.corpora)):
            cursor = (0, 0, 0)
            while cursor[0] == 0:
                _, cursor = _pack(self, source, cursor)
                total += 1
        return total


def fitting_length(corpora: Sequence[Corpus], num_fill: int) -> int:
    """Tokens of a row that holds the longest document, in 64s, from 256 to MAX_FITTED_LENGTH."""
    longest = max((corpus.longest() for corpus in corpora), default=0)
    return min(MAX_FITTED_LENGTH, max(256, -(-(longest + num_fill) // 64) * 64))


def next_batch(dataset: Dataset, num_rows: int, state: DataState) -> tuple[TokenBatch, DataState]:
    """The next rows and the state behind them; the same state always gives the same rows."""
    cursors = list(state.cursors or [(0, 0, 0)] * len(dataset.corpora))
    shares = np.array([source.share for source in dataset.config.sources])
    rows = []
    for number in range(state.rows, state.rows + num_rows):
        chosen = np.random.default_rng([dataset.config.seed, number]).choice(
            len(shares), p=shares / shares.sum()
        )
        row, cursors[chosen] = _pack(dataset, int(chosen), cursors[chosen])
        rows.append(row)
    return _stack(rows), DataState(state.rows + num_rows, tuple(cursors))


def held_out(dataset: Dataset) -> TokenBatch | None:
    """The documents kept for validation, packed into rows, each cut to the row length; None without any."""
    rows: list[_Row] = []
    kept = [(corpus, dataset.num_held_out(corpus)) for corpus in dataset.corpora]
    for corpus, count in [*kept, *((corpus, len(corpus)) for corpus in dataset.validation)]:
        for index in range(count):
            document = corpus[index]
            size = min(len(document.ids), dataset.config.length)
            if not rows or rows[-1].room < size:
                rows.append(_Row(dataset.config.length))
            rows[-1].add(document.ids[:size], 0, document.num_prompt)
            _fill(rows[-1], dataset)
    if not rows:
        return None
    return _stack(rows).columns(max(row.used for row in rows))


class _Row:
    """One row while it is being filled."""

    def __init__(self, length: int) -> None:
        self.table = np.zeros((5, length), np.int64)
        self.table[1] = _PADDING
        self.used, self.documents = 0, 0

    @property
    def room(self) -> int:
        return self.table.shape[1] - self.used

    def add(self, ids: Sequence[int], first: int, num_prompt: int) -> None:
        """A document, or its piece from token `first` on."""
        at = slice(self.used, self.used + len(ids))
        trained = np.arange(first, first + len(ids)) >= num_prompt
        positions = np.arange(len(ids))
        self.table[:, at] = np.stack(
            [ids, np.full(len(ids), self.documents), positions, trained, trained * 0]
        )
        self.used += len(ids)
        self.documents += 1

    def fill(self, token: int, count: int) -> None:
        """Copies of `token` behind the last document."""
        at = slice(self.used, self.used + count)
        last = self.table[:, self.used - 1]
        self.table[:, at] = np.array([token, last[1], 0, 1, 1])[:, None]
        self.table[2, at] = last[2] + 1 + np.arange(count)
        self.used += count


def _pack(dataset: Dataset, source: int, cursor: tuple[int, int, int]) -> tuple[_Row, tuple[int, int, int]]:
    """Documents in the epoch's order until the row is full.

    A text is cut where the row ends and goes on in the next row as a document of its own. An answer is not
    parted from its prompt: what does not fit the rest of a row waits for the next, and one that is longer
    than a whole row is cut at its end.
    """
    corpus = dataset.corpora[source]
    epoch, index, used = cursor
    row, num_held_out = _Row(dataset.config.length), dataset.num_held_out(corpus)
    while row.room > 1:
        order = _order(dataset.config.seed, source, epoch, len(corpus) - num_held_out)
        document = corpus[int(order[index]) + num_held_out]
        if not used:
            document = _with_gap(dataset, document, (source, epoch, index))
        whole = document.num_prompt > 0
        if whole and row.used and len(document.ids) > row.room:
            break
        piece = document.ids[used : used + row.room]
        row.add(piece, used, document.num_prompt)
        if used + len(piece) < len(document.ids) and not whole:
            used += len(piece)
            break
        if used + len(piece) == len(document.ids):
            _fill(row, dataset)
        epoch, index, used = (epoch, index + 1, 0) if index + 1 < len(order) else (epoch + 1, 0, 0)
    return row, (epoch, index, used)


def _with_gap(dataset: Dataset, document: Document, at: tuple[int, int, int]) -> Document:
    """The document, or a piece of it with a gap; `at` (source, epoch, index) decides which and where."""
    config = dataset.config
    if not config.fim or document.num_prompt or len(document.ids) < 2:
        return document
    rng = np.random.default_rng([config.seed, *at, _GAP])
    if rng.random() >= config.fim:
        return document
    size = min(len(document.ids), config.length - len(config.fim_token_ids))
    start = int(rng.integers(len(document.ids) - size + 1))
    return rearranged(document.ids[start : start + size], config.fim_token_ids, dataset.line_breaks, rng)


def _fill(row: _Row, dataset: Dataset) -> None:
    last = int(row.table[0, row.used - 1]) if row.used else -1
    if last in dataset.eos_token_ids:
        row.fill(last, min(dataset.num_fill, row.room))


@lru_cache(maxsize=16)
def _order(seed: int, source: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, source, epoch]).permutation(count)


def _stack(rows: Sequence[_Row]) -> TokenBatch:
    table = torch.from_numpy(np.stack([row.table for row in rows], 1))
    return TokenBatch(table[0], table[1], table[2], table[3].float(), table[4].bool())
