"""The one backbone: every family is this, with other numbers and other visibility.

A forward takes rows, not sequences, of any mix of requests: prompt and settled text on the base, canvases
through the denoiser, each through the adapters that it names. Keys and values go through an explicit pool.
Shapes: N rows, H hidden, S slots, J key heads, D head dim, V vocabulary, R rows whose logits are wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from vermilion.models import neighbours
from vermilion.models.attention import Attend
from vermilion.models.canon_layer import CanonLayer
from vermilion.models.dit import Condition, DiTLayer, FinalNorm
from vermilion.models.draft_head import DraftHead
from vermilion.models.drafter import Drafter
from vermilion.models.families import Architecture, LayerKind
from vermilion.models.families.names import LLAMA_PRODUCTS
from vermilion.models.layers import Attention, Layer, Norm
from vermilion.models.linear import LINEAR_KINDS, AdapterRows, Linear
from vermilion.models.neighbours import Neighbours
from vermilion.models.rotary import Rotary
from vermilion.models.sandwich_layer import SandwichLayer
from vermilion.models.self_conditioning import SelfConditioning
from vermilion.models.shared_layers import share_layers, vocabulary_linear
from vermilion.models.shares import WHOLE, Share


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one forward."""

    ids_N: Tensor
    positions_N: Tensor
    masked_N: Tensor
    """bool: rows that carry the mask embedding."""
    slots_N: Tensor
    """Pool slot that takes each row's key and value."""
    attend: Attend | Sequence[Attend]
    """One for each layer, or one for all."""
    adapters: Sequence[AdapterRows] = ()
    """Which rows go through which adapters of the model."""
    signal_MH: Tensor | None = None
    """What the last M rows, the noisy ones, are conditioned on, where the model conditions itself."""
    num_clean: int = 0
    """Leading rows that stand for settled text or its drafts; a drafter reads what the base makes of them."""
    neighbours: Neighbours | None = None
    """Wanted by some models (`neighbours.needed`) where the rows are of several texts; one text's rows that
    lie side by side have those that follow from their slots."""
    soft: tuple[Tensor, Tensor] | None = None
    """Rows [R], and the embeddings [R, H] that they carry in place of their tokens'."""


class Transformer(nn.Module):
    """Decoder-only transformer over rows."""

    def __init__(self, architecture: Architecture, kind: str = "dense", share: Share = WHOLE) -> None:
        """`kind`: what the weights are stored as, of `LINEAR_KINDS`. Under `torch.device("meta")` it takes no
        memory until they are loaded. Raises ConfigError where the `share` does not fit."""
        super().__init__()
        a, linear = architecture, LINEAR_KINDS[kind]
        self.architecture = a
        self.share = share
        self.own = share.of(a)
        """The sizes of this process's layers: those of `architecture` where no other shares them."""
        # Three bits of a float8's fraction cost tables of the vocabulary more than they save.
        tables = Linear if kind == "fp8" else linear
        self.embedding = vocabulary_linear(tables, (a.hidden_size, a.vocab_size), share)
        self.embedding_norm = Norm(a.hidden_size, a.norm_eps) if a.embedding_norm else None
        self.condition = Condition(a.condition_size, linear) if a.condition_size else None
        self.layers = nn.ModuleList(self._layer(kind, linear) for kind in self.own.layer_kinds())
        share_layers(self.layers, share)
        self.norm = (
            Norm(a.hidden_size, a.norm_eps)
            if self.condition is None
            else FinalNorm(a.hidden_size, self.condition, linear)
        )
        sizes = (a.hidden_size, a.vocab_size)
        self.head = None if a.tied_embeddings else vocabulary_linear(tables, sizes, share, bias=a.head_bias)
        self.rotary = Rotary(a)
        self.mask_embedding: nn.Parameter | None = None
        self.draft_head: DraftHead | None = None
        self.self_conditioning = SelfConditioning(a, linear) if a.self_conditioning else None
        self.drafter: Drafter | None = None

    def _layer(self, kind: LayerKind, linear: type[Linear]) -> Layer:
        if self.condition is not None:
            return DiTLayer(self.own, kind, linear, self.condition)
        if self.own.canon_kernel:
            return CanonLayer(self.own, kind, linear)
        return (SandwichLayer if self.own.sandwich_norms else Layer)(self.own, kind, linear)

    def new_pool(self, num_slots: int) -> Tensor:
        """Zeroed keys and values: [layers, S, 2, J, D], the drafter's layers last, in the activations' dtype
        and device. Where layers have different sizes, or keep more, J is 1 and D the most that one needs; a
        layer uses the beginning."""
        a, like = self.own, self.norm.weight
        of_layer = neighbours.pool_shape(a)
        num_layers = a.num_layers + (self.drafter.shape.num_layers if self.drafter is not None else 0)
        shape = (num_layers, num_slots, 2, *of_layer)
        if like.device.type == "cpu":
            # numpy's zeros come from the system untouched: memory is used as the slots are.
            size = math.prod(shape) * like.element_size()
            return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(like.dtype).view(shape)
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    def embed(
        self, ids_N: Tensor, masked_N: Tensor | None = None, soft: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """[N, H]; `soft` as of `Rows`."""
        x_NH = self.token_rows(ids_N, masked_N)
        if soft is not None:
            x_NH = x_NH.index_copy(0, *soft)
        return x_NH if self.embedding_norm is None else self.embedding_norm(x_NH)

    def token_rows(self, ids_N: Tensor, masked_N: Tensor | None = None) -> Tensor:
        """[N, H] before any norm; rows that are `masked` carry the mask embedding where the model has one."""
        x_NH = self.embedding.rows(ids_N)
        if self.architecture.embedding_scale != 1:
            x_NH = x_NH * torch.tensor(self.architecture.embedding_scale, dtype=x_NH.dtype)
        if masked_N is not None and self.mask_embedding is not None:
            x_NH = torch.where(masked_N[:, None], self.mask_embedding, x_NH)
        return x_NH

    def forward(self, rows: Rows, pool: Tensor) -> Tensor:
        """Hidden states [N, H] after the last norm; writes every row's key and value into `pool`."""
        x_NH = self.embed(rows.ids_N, rows.masked_N, rows.soft)
        if self.self_conditioning is not None and rows.signal_MH is not None:
            clean, noisy = torch.split(x_NH, [len(x_NH) - len(rows.signal_MH), len(rows.signal_MH)])
            x_NH = torch.cat([clean, self.self_conditioning(noisy, rows.signal_MH)])
        turns = self.rotary.at(rows.positions_N, x_NH.dtype)
        attends = rows.attend if isinstance(rows.attend, Sequence) else [rows.attend] * len(self.layers)
        inputs: list[Tensor] = []
        for layer, turn, attend, pool_S2JD in zip(self.layers, turns, attends, pool, strict=False):
            if self.drafter is not None:
                inputs.append(x_NH)
            attention: Attention = partial(through_pool, rows.slots_N, attend, pool_S2JD)
            if self.architecture.query_growth:
                attention = partial(_grown, self._growth(rows.positions_N), attention)
            x_NH, _ = layer(x_NH, rows.adapters, turn, attention, self._near(rows, pool_S2JD))
        if self.drafter is not None:
            self.drafter.inject_rows(inputs, turns, rows.slots_N[: rows.num_clean], pool)
        hidden_NH: Tensor = self.norm(x_NH)
        return hidden_NH

    def _near(self, rows: Rows, pool_S2JD: Tensor) -> Neighbours | None:
        """What a layer knows of the rows' neighbours."""
        a = self.architecture
        if not neighbours.needed(a):
            return None
        near = rows.neighbours or Neighbours.of_one_text(a, rows.positions_N, rows.slots_N)
        return near.over(rows.slots_N, pool_S2JD[:, :, 0, a.num_kv_heads * a.head_dim :])

    def _growth(self, positions_N: Tensor) -> Tensor:
        """What each row's queries are multiplied by, [N, 1, 1]."""
        a = self.architecture
        periods_N = (positions_N // a.query_period).double()
        return (1 + a.query_growth * periods_N.log1p()).to(self.norm.weight.dtype)[:, None, None]

    @property
    def output(self) -> Linear:
        """What hidden states are compared with: the head, or the embedding where they are tied."""
        return self.embedding if self.head is None else self.head

    def soft_embedding(self, probability_RV: Tensor) -> Tensor:
        """The mean embedding [R, H] under each row's distribution over tokens."""
        return self.embedding.mean_row(probability_RV) * self.architecture.embedding_scale

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """[R, V] in the activations' dtype."""
        logits_RV: Tensor = self.output(hidden_RH)
        cap = self.architecture.logit_softcap
        return cap * torch.tanh(logits_RV / cap) if cap else logits_RV

    def products(self) -> Iterator[tuple[Linear, tuple[str, ...]]]:
        """Every fused product of the layers that adapters may change, and its parts' published names
        (`model.layers.0.self_attn.q_proj`). Experts are left to themselves."""
        for index, layer in enumerate(self.layers):
            for fused, parts in LLAMA_PRODUCTS.items():
                linear = cast(Linear | None, getattr(layer, fused))
                if linear is not None:
                    named = parts[: len(linear.part_sizes)]
                    yield linear, tuple(f"model.layers.{index}.{part}" for part in named)


def _grown(growth_N11: Tensor, attention: Attention, q_NHD: Tensor, k_NJD: Tensor, v_NJD: Tensor) -> Tensor:
    return attention(q_NHD * growth_N11, k_NJD, v_NJD)


def through_pool(
    slots_N: Tensor, attend: Attend, pool_S2JD: Tensor, q_NHD: Tensor, k_NJD: Tensor, v_NJD: Tensor
) -> Tensor:
    """The rows' keys and values go into the pool; what they see comes out of it."""
    num_keys, size = k_NJD.shape[1:]
    if pool_S2JD.shape[2:] != (num_keys, size):
        pool_S2JD = pool_S2JD[:, :, 0, : num_keys * size].view(-1, 2, num_keys, size)
    pool_S2JD.index_copy_(0, slots_N, torch.stack([k_NJD, v_NJD], 1))
    return attend(q_NHD, pool_S2JD)
