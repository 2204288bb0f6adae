"""Rows through a model's drafter. Shapes as in `transformer.py`; W draft vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vermilion.models.drafter import Drafter
from vermilion.models.product import product
from vermilion.models.transformer import Rows, Transformer, through_pool


@dataclass(frozen=True, slots=True)
class DraftedRows:
    """A model's drafter in the model's place: rows through its layers, on the pool's last."""

    model: Transformer
    drafter: Drafter
    head_WH: Tensor
    """The base's head, its rows of the draft vocabulary."""

    @classmethod
    def of(cls, model: Transformer) -> DraftedRows | None:
        """None for a model without a drafter."""
        if model.drafter is None:
            return None
        return cls(model, model.drafter, model.output.rows(model.drafter.vocabulary_W))

    def __call__(self, rows: Rows, pool: Tensor) -> Tensor:
        """Hidden states [N, H] after the drafter's last norm."""
        x_NH = self.model.embedding.rows(rows.ids_N)
        x_NH = torch.where(rows.masked_N[:, None], self.drafter.mask_embedding.to(x_NH.dtype), x_NH)
        own = self.drafter.shape.num_layers
        turns = self.model.rotary.at(rows.positions_N, x_NH.dtype)[-own:]
        attends = rows.attend if isinstance(rows.attend, Sequence) else [rows.attend] * own
        parts = zip(self.drafter.layers, turns, attends, pool[-own:], strict=True)
        for layer, turn, attend, pool_S2JD in parts:
            x_NH, _ = layer(x_NH, (), turn, partial(through_pool, rows.slots_N, attend, pool_S2JD))
        hidden_NH: Tensor = self.drafter.norm(x_NH)
        return hidden_NH

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """[R, V]; minus infinity for what the drafter does not guess."""
        guessed_RW = product(hidden_RH, self.head_WH, None)
        size = (hidden_RH.shape[0], self.model.architecture.vocab_size)
        logits_RV = guessed_RW.new_full(size, float("-inf"))
        logits_RV[:, self.drafter.vocabulary_W] = guessed_RW
        return logits_RV
