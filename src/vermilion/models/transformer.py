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

from vermilion.models.attention import Attend
from vermilion.models.draft_head import DraftHead
from vermilion.models.families import Architecture
from vermilion.models.families.names import LLAMA_NORMS, LLAMA_PRODUCTS
from vermilion.models.layers import Layer, Norm, Rotary
from vermilion.models.linear import LINEAR_KINDS, AdapterRows, Linear
from vermilion.models.self_conditioning import SelfConditioning


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one forward."""

    ids_N: Tensor
    positions_N: Tensor
    masked_N: Tensor
    """bool: rows that carry the mask embedding."""
    slots_N: Tensor
    """Pool slot that takes each row's key and value."""
    attend: Attend
    adapters: Sequence[AdapterRows] = ()
    """Which rows go through which adapters of the model."""
    signal_MH: Tensor | None = None
    """What the last M rows, the noisy ones, are conditioned on, where the model conditions itself."""


class Transformer(nn.Module):
    """Decoder-only transformer over rows."""

    def __init__(self, architecture: Architecture, kind: str = "dense") -> None:
        """`kind`: what the weights are stored as, of `LINEAR_KINDS`. Under `torch.device("meta")` it takes no
        memory until they are loaded."""
        super().__init__()
        a, linear = architecture, LINEAR_KINDS[kind]
        self.architecture = a
        self.embedding = linear(a.hidden_size, (a.vocab_size,))
        self.layers = nn.ModuleList(Layer(a, linear) for _ in range(a.num_layers))
        self.norm = Norm(a.hidden_size, a.norm_eps)
        self.head = None if a.tied_embeddings else linear(a.hidden_size, (a.vocab_size,))
        self.rotary = Rotary(a.head_dim, a.rope_theta, a.rope_fraction)
        self.mask_embedding: nn.Parameter | None = None
        self.draft_head: DraftHead | None = None
        self.self_conditioning = SelfConditioning(a, linear) if a.self_conditioning else None

    def new_pool(self, num_slots: int) -> Tensor:
        """Zeroed keys and values: [layers, S, 2, J, D] in the activations' dtype and device."""
        a, like = self.architecture, self.norm.weight
        shape = (a.num_layers, num_slots, 2, a.num_kv_heads, a.head_dim)
        if like.device.type == "cpu":
            # numpy's zeros come from the system untouched: memory is used as the slots are.
            size = math.prod(shape) * like.element_size()
            return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(like.dtype).view(shape)
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    def embed(self, ids_N: Tensor, masked_N: Tensor | None = None) -> Tensor:
        """[N, H]; rows that are `masked` carry the mask embedding where the model has one."""
        x_NH = self.embedding.rows(ids_N)
        if masked_N is None or self.mask_embedding is None:
            return x_NH
        return torch.where(masked_N[:, None], self.mask_embedding, x_NH)

    def forward(self, rows: Rows, pool: Tensor) -> Tensor:
        """Hidden states [N, H] after the last norm; writes every row's key and value into `pool`."""
        x_NH = self.embed(rows.ids_N, rows.masked_N)
        if self.self_conditioning is not None and rows.signal_MH is not None:
            clean, noisy = torch.split(x_NH, [len(x_NH) - len(rows.signal_MH), len(rows.signal_MH)])
            x_NH = torch.cat([clean, self.self_conditioning(noisy, rows.signal_MH)])
        turn = self.rotary.at(rows.positions_N, x_NH.dtype)
        for layer, pool_S2JD in zip(self.layers, pool, strict=True):
            x_NH, _ = layer(x_NH, rows.adapters, turn, partial(_through_pool, rows, pool_S2JD))
        hidden_NH: Tensor = self.norm(x_NH)
        return hidden_NH

    @property
    def output(self) -> Linear:
        """What hidden states are compared with: the head, or the embedding where they are tied."""
        return self.embedding if self.head is None else self.head

    def soft_embedding(self, probability_RV: Tensor) -> Tensor:
        """The mean embedding [R, H] under each row's distribution over tokens."""
        weight_VH = self.embedding.part_weight(0)
        return probability_RV.to(weight_VH.dtype) @ weight_VH * self.architecture.embedding_scale

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """[R, V] in the activations' dtype."""
        logits_RV: Tensor = self.output(hidden_RH)
        return logits_RV

    def products(self) -> Iterator[tuple[Linear, tuple[str, ...]]]:
        """Every fused product of the layers, and its parts' published names
        (`model.layers.0.self_attn.q_proj`)."""
        for index, layer in enumerate(self.layers):
            for fused, parts in LLAMA_PRODUCTS.items():
                yield (
                    cast(Linear, getattr(layer, fused)),
                    tuple(f"model.layers.{index}.{part}" for part in parts),
                )

    def norms(self) -> Iterator[tuple[Norm, str]]:
        """Every norm and its published name (`model.norm`)."""
        yield self.norm, "model.norm"
        for index, layer in enumerate(self.layers):
            for ours, theirs in LLAMA_NORMS.items():
                norm = getattr(layer, ours)
                if norm is not None:
                    yield norm, f"model.layers.{index}.{theirs}"


def _through_pool(rows: Rows, pool_S2JD: Tensor, q_NHD: Tensor, k_NJD: Tensor, v_NJD: Tensor) -> Tensor:
    """The rows' keys and values go into the pool; what they see comes out of it."""
    pool_S2JD.index_copy_(0, rows.slots_N, torch.stack([k_NJD, v_NJD], 1))
    return rows.attend(q_NHD, pool_S2JD)
