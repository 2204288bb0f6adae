"""The backbone over whole rows of text, with gradients: what the pool-based forward computes, for training.

Two passes (`clean`, then `noisy` over its keys and values) or one over both streams (`joint`); both give the
same numbers. Shapes: B rows, L positions, S streams (one or two), N = S x B x L rows of a product, H hidden,
J key heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import MethodType
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils.checkpoint import checkpoint

from vermilion.errors import ConfigError
from vermilion.models.adapters import DENOISER
from vermilion.models.layers import KeysValues, Layer
from vermilion.models.linear import AdapterRows, Linear
from vermilion.models.neighbours import needed
from vermilion.models.rotary import Turn
from vermilion.models.transformer import Transformer
from vermilion.training.distributed import shard
from vermilion.training.masks import Layout, flex_masks, two_pass
from vermilion.training.run import TUNED

Result = TypeVar("Result")
_MOST_PLAIN = 512
"""Keys up to which attention may hold all its probabilities."""
Mask = Tensor | BlockMask
Seen = tuple[Mask, Mask]
"""Who sees whom, for clean rows [B, L, L] and noisy rows [B, L, 2L]; with context `full` noisy [B, L, L]."""


@dataclass(frozen=True, slots=True)
class NoisyRows:
    """The noisy stream: tokens, and which of them are hidden behind the mask embedding."""

    ids_BL: Tensor
    masked_BL: Tensor
    """bool"""


@dataclass(frozen=True, slots=True)
class _Attention:
    """A layer's attention over whole streams: the keys are at hand instead of in a pool."""

    mask: Mask
    """Where each of the [B, S L] queries may look."""
    shape: tuple[int, int, int]
    """(S, B, L)"""
    past: KeysValues | None = None
    """Of the stream before, which comes first among the keys."""

    def __call__(self, q_NHD: Tensor, k_NJD: Tensor, v_NJD: Tensor) -> Tensor:
        q, keys, values = (self._by_head(each, self.shape) for each in (q_NHD, k_NJD, v_NJD))
        if self.past is not None:
            one = (1, *self.shape[1:])
            keys, values = (
                torch.cat([self._by_head(before, one), now], 2)
                for before, now in zip(self.past, (keys, values), strict=True)
            )
        streams, batch, length = self.shape
        seen = _attend(q, keys, values, self.mask)
        split = seen.reshape(batch, -1, streams, length, seen.shape[-1])
        return split.permute(2, 0, 3, 1, 4).flatten(0, 2)

    @staticmethod
    def _by_head(x_NJD: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """[N, J, D] to [B, J, S L, D]."""
        return x_NJD.view(*shape, *x_NJD.shape[1:]).permute(1, 3, 0, 2, 4).flatten(2, 3)


@dataclass(frozen=True, slots=True)
class _Call:
    """What every layer of one forward shares."""

    adapters: Sequence[AdapterRows]
    turns: Sequence[Turn | None]
    attention: _Attention


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
        `sharded`: split the weights, in place, over the processes of the run. Raises ConfigError for a model
        with sliding windows."""
        if model.architecture.condition_size:
            raise ConfigError("A diffusion transformer with modulated norms cannot be trained here.")
        if model.architecture.query_growth:
            raise ConfigError("A model whose queries grow with their position cannot be trained here.")
        if needed(model.architecture):
            raise ConfigError("A model whose rows mix otherwise than by attention cannot be trained here.")
        if any(kind.window for kind in model.architecture.layer_kinds()):
            raise ConfigError("A model with sliding windows cannot be trained here: layers see whole texts.")
        self.model = model
        self._layers = cast(Sequence[Layer], model.layers)
        self._recompute = recompute
        self._flex = flex
        self._sharded = sharded
        if compiled:
            forward = torch.compile(Layer.forward)
            for layer in self._layers:
                layer.forward = MethodType(forward, layer)  # type: ignore[method-assign]
        if sharded:
            shard(model)

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
        x_NH = self.model.embed(ids_BL.reshape(-1))
        call = self._call(position_BL, seen[0], x_NH, num_noisy=0)
        stored = []
        for index in range(len(self._layers)):
            x_NH, keys_values = self._run(index, x_NH, call)
            stored.append(keys_values)
        return self.model.norm(x_NH).unflatten(0, tuple(ids_BL.shape)), stored

    def noisy(
        self, rows: NoisyRows, position_BL: Tensor, seen: Seen, past: Sequence[KeysValues] | None
    ) -> Tensor:
        """Hidden states [B, L, H] of the noisy stream over `past`, the clean stream's keys and values, or
        over itself alone."""
        x_NH = self._embed(rows)
        call = self._call(position_BL, seen[1], x_NH, num_noisy=x_NH.shape[0])
        for index in range(len(self._layers)):
            attention = replace(call.attention, past=past[index] if past else None)
            x_NH, _ = self._run(index, x_NH, replace(call, attention=attention))
        hidden_BLH: Tensor = self.model.norm(x_NH).unflatten(0, tuple(rows.ids_BL.shape))
        return hidden_BLH

    def joint(
        self, ids_BL: Tensor, rows: NoisyRows, position_BL: Tensor, mask_B2L2L: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hidden states of both streams, each [B, L, H], from one forward; gradients reach both."""
        x_NH = torch.cat([self.model.embed(ids_BL.reshape(-1)), self._embed(rows)])
        call = self._call(position_BL, mask_B2L2L, x_NH, num_noisy=x_NH.shape[0] // 2)
        for index in range(len(self._layers)):
            x_NH, _ = self._run(index, x_NH, call)
        both = self.model.norm(x_NH).view(2, *ids_BL.shape, -1)
        return both[0], both[1]

    def _run(self, index: int, x_NH: Tensor, call: _Call) -> tuple[Tensor, KeysValues]:
        layer, given = self._layers[index], (x_NH, call.adapters, call.turns[index], call.attention)
        if self._recompute and torch.is_grad_enabled():
            done: tuple[Tensor, KeysValues] = checkpoint(layer, *given, use_reentrant=False)
            return done
        done = layer(*given)
        return done

    def _embed(self, rows: NoisyRows) -> Tensor:
        return self.model.embed(rows.ids_BL.reshape(-1), rows.masked_BL.reshape(-1))

    def _call(self, position_BL: Tensor, mask: Mask, x_NH: Tensor, num_noisy: int) -> _Call:
        """The noisy rows are the last; what is fine-tuned is on all."""
        count, streams = x_NH.shape[0], x_NH.shape[0] // position_BL.numel()
        adapters = [AdapterRows(DENOISER, count - num_noisy, count)] if num_noisy else []
        turns = self.model.rotary.at(position_BL.reshape(-1).repeat(streams), x_NH.dtype)
        attention = _Attention(mask, (streams, position_BL.shape[0], position_BL.shape[1]))
        return _Call([*adapters, AdapterRows(TUNED, 0, count)], turns, attention)


def precision(autocast: bool, model: Transformer) -> AbstractContextManager[object]:
    """bfloat16 products, or whatever the weights have."""
    return torch.autocast(model.norm.weight.device.type, torch.bfloat16) if autocast else nullcontext()


def round_frozen(model: Transformer) -> None:
    """Keep the layers' frozen weights as bfloat16, in place, instead of casting them again for every product.

    The numbers under `precision(True)` stay the same; memory for them is halved.
    """
    for layer in model.layers:
        for module in layer.modules():
            if isinstance(module, Linear):
                for parameter in module.parameters(recurse=True):
                    if not parameter.requires_grad:
                        parameter.data = parameter.data.to(torch.bfloat16)


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


def _widened(x_BJKD: Tensor, num_heads: int) -> Tensor:
    """Every key head once per query head that reads it."""
    return x_BJKD.repeat_interleave(num_heads // x_BJKD.shape[1], 1)
