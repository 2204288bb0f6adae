"""The backbone over whole rows of text, with gradients: what the pool-based forward computes, for training.

Two passes (`clean`, then `noisy` over its keys and values) or one over both streams (`joint`); both give the
same numbers. Shapes: B rows, L positions, S streams (one or two), N = S x B x L rows of a product, H hidden,
J key heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import repeat
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils.checkpoint import checkpoint

from vermilion.models.layers import GatedLinear, Rotary
from vermilion.models.transformer import Layer, Transformer
from vermilion.training.distributed import shard
from vermilion.training.masks import Layout, flex_masks, two_pass

Result = TypeVar("Result")
_MOST_PLAIN = 512
"""Keys up to which attention may hold all its probabilities."""
KeysValues = tuple[Tensor, Tensor]
"""Keys and values after RoPE, each [B, J, L, D]."""


@dataclass(frozen=True, slots=True)
class NoisyRows:
    """The noisy stream: tokens, and which of them are hidden behind the mask embedding."""

    ids_BL: Tensor
    masked_BL: Tensor
    """bool"""


@dataclass(frozen=True, slots=True)
class _Call:
    """What every layer of one forward shares."""

    rotary: Rotary
    turn: tuple[Tensor, Tensor]
    mask: Tensor | BlockMask
    """Where each of the [B, S L] queries may look."""
    num_clean: int
    shape: tuple[int, int, int]
    """(S, B, L)"""


Mask = Tensor | BlockMask
Seen = tuple[Mask, Mask]
"""Who sees whom, for clean rows [B, L, L] and noisy rows [B, L, 2L]; with context `full` noisy [B, L, L]."""


class Forward:
    """A model, and how its layers are run."""

    def __init__(
        self,
        model: Transformer,
        *,
        recompute: bool = False,
        compiled: bool = False,
        flex: bool = False,
        sharded: bool = False,
    ) -> None:
        """`recompute`: drop activations and compute them again when going backward, one layer at a time;
        `compiled`: run each layer through torch.compile; `flex`: FlexAttention instead of dense masks;
        `sharded`: split the weights, in place, over the processes of the run."""
        self.model = model
        self._layers = cast(Sequence[Layer], model.layers)
        self._recompute = recompute
        self._flex = flex
        self._layer: Callable[..., tuple[Tensor, KeysValues]] = torch.compile(_layer) if compiled else _layer
        self._sharded = sharded
        if sharded:
            shard(model, self._layer)
            self._layer = _sharded_layer

    def whole(self, work: Callable[[], Result]) -> Result:
        """What `work` returns; only in here are weights that no layer owns at hand."""
        result: Result = self.model.over_text(work) if self._sharded else work()  # type: ignore[operator]
        return result

    def seen(self, layout: Layout) -> Seen:
        """The layout's masks for `clean` and `noisy`."""
        if not self._flex:
            clean_BLL, noisy_BL2L = two_pass(layout)
            alone = layout.context == "full"
            return clean_BLL, noisy_BL2L[:, :, noisy_BL2L.shape[1] :] if alone else noisy_BL2L
        return flex_masks(layout)

    def clean(self, ids_BL: Tensor, position_BL: Tensor, seen: Seen) -> tuple[Tensor, list[KeysValues]]:
        """Hidden states [B, L, H] of the clean stream after the last norm, and every layer's `KeysValues`."""
        x_NH = F.embedding(ids_BL.reshape(-1), self.model.embedding)
        call = self._call(position_BL, seen[0], x_NH, num_streams=1, num_clean=x_NH.shape[0])
        stored = []
        for layer in self._layers:
            x_NH, keys_values = self._run(layer, x_NH, call, None)
            stored.append(keys_values)
        return self.model.norm(x_NH).unflatten(0, tuple(ids_BL.shape)), stored

    def noisy(
        self, rows: NoisyRows, position_BL: Tensor, seen: Seen, past: Sequence[KeysValues] | None
    ) -> Tensor:
        """Hidden states [B, L, H] of the noisy stream over `past`, the clean stream's keys and values, or
        over itself alone."""
        x_NH = self._embed(rows)
        call = self._call(position_BL, seen[1], x_NH, num_streams=1, num_clean=0)
        for layer, before in zip(self._layers, past or repeat(None), strict=False):
            x_NH, _ = self._run(layer, x_NH, call, before)
        hidden_BLH: Tensor = self.model.norm(x_NH).unflatten(0, tuple(rows.ids_BL.shape))
        return hidden_BLH

    def _run(
        self, layer: Layer, x_NH: Tensor, call: _Call, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        if self._recompute and torch.is_grad_enabled():
            done: tuple[Tensor, KeysValues] = checkpoint(
                self._layer, layer, x_NH, call, past, use_reentrant=False
            )
            return done
        return self._layer(layer, x_NH, call, past)

    def joint(
        self, ids_BL: Tensor, rows: NoisyRows, position_BL: Tensor, mask_B2L2L: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hidden states of both streams, each [B, L, H], from one forward; gradients reach both."""
        clean_NH = F.embedding(ids_BL.reshape(-1), self.model.embedding)
        x_NH = torch.cat([clean_NH, self._embed(rows)])
        call = self._call(position_BL, mask_B2L2L, x_NH, num_streams=2, num_clean=clean_NH.shape[0])
        for layer in self._layers:
            x_NH, _ = self._layer(layer, x_NH, call, None)
        both = self.model.norm(x_NH).view(2, *ids_BL.shape, -1)
        return both[0], both[1]

    def _embed(self, rows: NoisyRows) -> Tensor:
        x_NH = F.embedding(rows.ids_BL.reshape(-1), self.model.embedding)
        if self.model.mask_embedding is None:
            return x_NH
        return torch.where(rows.masked_BL.reshape(-1, 1), self.model.mask_embedding, x_NH)

    def _call(self, position_BL: Tensor, mask: Mask, like: Tensor, num_streams: int, num_clean: int) -> _Call:
        cos, sin = self.model.rotary.at(position_BL.reshape(-1).repeat(num_streams))
        turn = (cos.to(like.dtype), sin.to(like.dtype))
        num_rows, length = position_BL.shape
        return _Call(self.model.rotary, turn, mask, num_clean, (num_streams, num_rows, length))


def precision(autocast: bool, model: Transformer) -> AbstractContextManager[object]:
    """bfloat16 products, or whatever the weights have."""
    return torch.autocast(model.norm.weight.device.type, torch.bfloat16) if autocast else nullcontext()


def round_frozen(model: Transformer) -> None:
    """Keep the layers' frozen weights as bfloat16, in place, instead of casting them again for every product.

    The numbers under `precision(True)` stay the same; memory for them is halved.
    """
    for layer in model.layers:
        for module in layer.modules():
            if isinstance(module, GatedLinear):
                for parameter in module.parameters(recurse=True):
                    if not parameter.requires_grad:
                        parameter.data = parameter.data.to(torch.bfloat16)


def _sharded_layer(layer: Layer, *given: Any) -> tuple[Tensor, KeysValues]:
    done: tuple[Tensor, KeysValues] = layer.over_text(*given)  # type: ignore[operator]
    return done


def _layer(layer: Layer, x_NH: Tensor, call: _Call, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
    """`Layer.forward` with the keys at hand instead of in a pool."""
    num_heads, num_keys, head_dim = layer.num_heads, layer.num_keys, layer.head_dim
    qkv = layer.qkv(layer.attention_norm(x_NH), call.num_clean)
    heads = qkv.unflatten(-1, (num_heads + 2 * num_keys, head_dim))
    # Split, not sliced: the gradient of a slice is a whole tensor of zeros.
    qk, v = torch.split(heads, [num_heads + num_keys, num_keys], 1)
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = torch.split(qk, [num_heads, num_keys], 1)
        qk = torch.cat([layer.q_norm(q), layer.k_norm(k)], 1)
    q, k = torch.split(call.rotary.rotate(qk, *call.turn), [num_heads, num_keys], 1)
    q, k, v = (_by_head(each, call.shape) for each in (q, k, v))
    keys, values = (k, v) if past is None else (torch.cat([past[0], k], 2), torch.cat([past[1], v], 2))
    seen = _attend(q, keys, values, call.mask)
    x_NH = x_NH + layer.output(_by_row(seen, call.shape), call.num_clean)
    gate, up = layer.gate_up(layer.ffn_norm(x_NH), call.num_clean).chunk(2, -1)
    return x_NH + layer.down(F.silu(gate) * up, call.num_clean), (k, v)


def _attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | BlockMask) -> Tensor:
    """[B, heads, queries, D]; every key head serves the query heads that read it."""
    if isinstance(mask, BlockMask):
        seen: Tensor = flex_attention(q, keys, values, block_mask=mask, enable_gqa=True)
        return seen
    keys, values = _widened(keys, q.shape[1]), _widened(values, q.shape[1])
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu") and mask.shape[-1] <= _MOST_PLAIN:
        # The library's fused attention goes backward three times as slowly in bfloat16.
        score = torch.matmul(q * q.shape[-1] ** -0.5, keys.transpose(-1, -2))
        hidden = torch.zeros(mask.shape, dtype=score.dtype).masked_fill_(~mask, -torch.inf)
        return torch.matmul((score + hidden[:, None]).softmax(-1), values)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask[:, None])


def _by_head(x_NJD: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """[N, J, D] to [B, J, S L, D]."""
    return x_NJD.view(*shape, *x_NJD.shape[1:]).permute(1, 3, 0, 2, 4).flatten(2, 3)


def _by_row(x_BJKD: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """[B, J, S L, D] back to [N, J D]."""
    num_streams, num_rows, length = shape
    split = x_BJKD.reshape(num_rows, -1, num_streams, length, x_BJKD.shape[-1])
    return split.permute(2, 0, 3, 1, 4).reshape(num_streams * num_rows * length, -1)


def _widened(x_BJKD: Tensor, num_heads: int) -> Tensor:
    """Every key head once per query head that reads it."""
    return x_BJKD.repeat_interleave(num_heads // x_BJKD.shape[1], 1)
