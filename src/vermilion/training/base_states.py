"""The base's hidden states at a few depths, computed once and kept on disk, so that a drafter's training
never runs the base.

A folder for each source: `documents` (int64 pairs: end of the text in `tokens`, prompt tokens), `tokens`
(uint32) and `states` (bfloat16, [tokens, taps + 1, hidden], the last the state after the base's last norm).
Texts are appended; what a killed run left half done is cut off at the next opening.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vermilion.data.corpus import Corpus
from vermilion.errors import ConfigError
from vermilion.models.transformer import Transformer
from vermilion.training.drafter_loss import OwnText

States = Callable[[Sequence[Sequence[int]]], list[torch.Tensor]]
"""Texts -> the states of each, [L, taps + 1, H]."""


@torch.no_grad()
def states_of(model: Transformer, texts: Sequence[Sequence[int]], taps: Sequence[int]) -> list[torch.Tensor]:
    """Of each text, [L, taps + 1, H]: the inputs of the layers `taps`, and the state after the last norm.

    One forward, on the model's device; what fills shorter texts up stands behind them, unseen."""
    length, device = max(map(len, texts)), model.norm.weight.device
    ids_N = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids in texts], device=device).flatten()
    x_NH = model.embed(ids_N)
    turns = model.rotary.at(torch.arange(length, device=device).repeat(len(texts)), x_NH.dtype)
    inputs = []
    for layer, turn in zip(model.layers, turns, strict=True):
        inputs.append(x_NH)
        x_NH, _ = layer(x_NH, (), turn, partial(_causal, len(texts)))
    states_NTH = torch.stack([*(inputs[tap] for tap in taps), model.norm(x_NH)], 1)
    each_BLTH = states_NTH.view(len(texts), length, *states_NTH.shape[1:])
    return [states_LTH[: len(ids)] for ids, states_LTH in zip(texts, each_BLTH, strict=True)]


def batches(texts: Sequence[Sequence[int]], most_tokens: int) -> Iterator[list[int]]:
    """The numbers of all texts, those of like lengths together, so many that no batch has more than
    `most_tokens` when it is filled up; a longer text is one of its own."""
    batch: list[int] = []
    for number in sorted(range(len(texts)), key=lambda number: len(texts[number])):
        if batch and (len(batch) + 1) * len(texts[number]) > most_tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def text_of(model: Transformer, ids: Sequence[int], num_prompt: int, taps: Sequence[int]) -> OwnText:
    """A text with its states, in memory."""
    [states] = states_of(model, [ids], taps)
    return OwnText(torch.tensor(ids, device=states.device), states[:, :-1], states[:, -1], num_prompt)


def _causal(num_texts: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (each.view(num_texts, -1, *each.shape[1:]).transpose(1, 2) for each in (q, k, v))
    seen: torch.Tensor = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return seen.transpose(1, 2).flatten(0, 1)


class StateFolder:
    """Texts and their states, appended to and read at random."""

    def __init__(self, folder: Path, taps: Sequence[int], hidden_size: int) -> None:
        """Raises ConfigError for a folder of other taps."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._shape = folder, (len(taps) + 1, hidden_size)
        meta, path = {"taps": list(taps), "hidden_size": hidden_size}, folder / "states.json"
        if path.is_file() and json.loads(path.read_text()) != meta:
            raise ConfigError(f"{folder}: holds the states of other layers; name another folder.")
        path.write_text(json.dumps(meta), encoding="utf-8")
        documents = folder / "documents"
        documents.touch()
        self._documents = np.fromfile(documents, "<i8").reshape(-1, 2)
        size = int(self._documents[-1, 0]) if len(self._documents) else 0
        for name, width in (("tokens", 4), ("states", 2 * self._shape[0] * hidden_size)):
            (folder / name).touch()
            with (folder / name).open("r+b") as file:
                file.truncate(size * width)

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def num_tokens(self) -> int:
        return int(self._documents[-1, 0]) if len(self) else 0

    def counts(self, vocab_size: int) -> NDArray[np.int64]:
        """How often the texts hold each token."""
        tokens = np.fromfile(self._folder / "tokens", "<u4")
        return np.bincount(tokens, minlength=vocab_size).astype(np.int64)

    def extend(self, corpus: Corpus, states: States, batch_tokens: int, max_length: int) -> Iterator[int]:
        """Append the texts of `corpus` that are not there yet; yields how many are."""
        while len(self) < len(corpus):
            texts: list[tuple[list[int], int]] = []
            while len(self) + len(texts) < len(corpus) and sum(len(t) for t, _ in texts) < batch_tokens:
                document = corpus[len(self) + len(texts)]
                texts.append((list(document.ids)[:max_length], document.num_prompt))
            found = states([ids for ids, _ in texts])
            end = self.num_tokens
            rows = []
            with (self._folder / "tokens").open("ab") as tokens, (self._folder / "states").open("ab") as file:
                for (ids, num_prompt), state in zip(texts, found, strict=True):
                    np.asarray(ids, "<u4").tofile(tokens)
                    state.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tofile(file)
                    end += len(ids)
                    rows.append((end, num_prompt))
            with (self._folder / "documents").open("ab") as documents:
                np.asarray(rows, "<i8").tofile(documents)
            self._documents = np.concatenate([self._documents, np.asarray(rows, "<i8")])
            yield len(self)

    def __getitem__(self, index: int) -> OwnText:
        start = int(self._documents[index - 1, 0]) if index else 0
        end, num_prompt = (int(value) for value in self._documents[index])
        tokens = np.fromfile(self._folder / "tokens", "<u4", end - start, offset=4 * start)
        row = self._shape[0] * self._shape[1]
        raw = np.fromfile(self._folder / "states", "<i2", (end - start) * row, offset=2 * row * start)
        states = torch.from_numpy(raw).view(torch.bfloat16).view(-1, *self._shape)
        return OwnText(torch.from_numpy(tokens.astype(np.int64)), states[:, :-1], states[:, -1], num_prompt)
