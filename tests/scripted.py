"""A stand-in for a model: logits as a fixed function of what a row sees, and a runner that answers by it.

It needs no weights, so a reference sampler elsewhere can be run over the very same numbers. float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from vermilion.decoding.forward_jobs import Wanted
from vermilion.decoding.passes import Choices, Pass, Reading, Segment
from vermilion.decoding.penalties import bans
from vermilion.decoding.sampling import read
from vermilion.types import Sampling

VOCAB, MASK, WIDTH = 64, 63, 16


class ScriptedModel:
    """Row p's logits: sharpness x W tanh(P[p mod 97] + sum over rows q it sees of A[p - q] E[id_q])."""

    def __init__(self, seed: int, sharpness: float = 2.0) -> None:
        dice = np.random.RandomState(seed)
        self._sharpness = sharpness
        self._ids = dice.normal(size=(VOCAB, WIDTH))
        self._ids[MASK] *= 0.2
        self._places = dice.normal(size=(97, WIDTH))
        self._gaps = dice.normal(size=129) / 3
        self._head = dice.normal(size=(WIDTH, VOCAB))

    def logits(
        self, position: int, seen: Mapping[int, int] | Iterable[tuple[int, int | Choices]]
    ) -> NDArray[np.float64]:
        """[VOCAB], of a row that sees these ids, or mixtures, at these positions, one or more at each."""
        total = self._places[position % 97].copy()
        for place, what in sorted(seen.items() if isinstance(seen, Mapping) else seen):
            row = self._ids[what] if isinstance(what, int) else self._mixture(what)
            total += self._gaps[(position - place) % 129] * row
        return self._sharpness * (np.tanh(total) @ self._head)

    def _mixture(self, choices: Choices) -> NDArray[np.float64]:
        """E of several tokens and the mask at once, by DMax's formula."""
        shares = [(token, math.exp(logprob)) for token, logprob in choices]
        shares.append((MASK, max(0.0, 1 - sum(share for _, share in shares))))
        mean = sum((share * self._ids[token] for token, share in shares), np.zeros(WIDTH))
        length = sum(share * np.linalg.norm(self._ids[token]) for token, share in shares)
        return np.asarray(mean * (length / (np.linalg.norm(mean) + 1e-6)))


class ScriptedRunner:
    """Answers one request's passes: what stands in which slot is remembered, as a cache of keys would be."""

    def __init__(self, model: ScriptedModel) -> None:
        self._model = model
        self._slots: dict[int, tuple[int, int | Choices]] = {}
        self._seen: dict[int, NDArray[np.float64]] = {}
        self.rows = 0

    def run(self, asked: Pass, *, entropy: bool = False) -> list[Reading]:
        rows = []
        for segment in asked.segments:
            for i, token in enumerate(segment.ids):
                choices = segment.mixed[i] if segment.mixed else ()
                self._slots[segment.slot + i] = (segment.start + i, choices or token)
                rows.append((segment, i))
        self.rows += len(rows)
        logits, wanted = [], []
        for one in asked.reads:
            logits.append(self._logits(*rows[one.row]))
            if one.against >= 0:
                against = self._logits(*rows[one.against])
                logits[-1] = against + (1 + one.guidance) * (logits[-1] - against)
            wanted.append(
                Wanted(
                    Sampling(),
                    one.position,
                    one.targets,
                    bans(one.banned),
                    entropy=entropy,
                    top=one.top,
                    may_mask=one.may_mask,
                )
            )
        readings = read(torch.tensor(np.array(logits)), wanted, MASK) if logits else []
        return [
            replace(reading, divergence=self._moved(one.position, row)) if one.divergence else reading
            for reading, one, row in zip(readings, asked.reads, logits, strict=True)
        ]

    def _moved(self, position: int, logits: NDArray[np.float64]) -> float:
        """KL divergence from what the position was read as before, without the mask."""
        weights = np.exp(np.delete(logits, MASK))
        now = weights / weights.sum()
        before = self._seen.get(position)
        self._seen[position] = now
        return math.inf if before is None else float((now * np.log(now / before)).sum())

    def _logits(self, segment: Segment, row: int) -> NDArray[np.float64]:
        own = range(segment.slot, segment.slot + segment.reach(row))
        slots = {*range(segment.sees), *own, *segment.also}
        return self._model.logits(segment.start + row, [self._slots[slot] for slot in slots])
