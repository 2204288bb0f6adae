"""Layers, embedding and head that a process shares with others. Shapes: R rows, I inputs, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vermilion.models.linear import AdapterRows, Linear, WeightCut
from vermilion.models.shares import Share, Sums

_CUT_BY_OUTPUTS = ("qkv", "gate", "gate_up", "up", "experts.gate_up", "experts.shared_gate_up")
_CUT_BY_INPUTS = ("output", "down", "experts.down", "experts.shared_down")
_SUMMED = ("output", "down", "experts")


def share_layers(layers: Iterable[nn.Module], share: Share) -> None:
    """Layers that were made with the share's sizes know what they are of the whole, and sum with the other
    processes. Nothing happens where one process holds all."""
    if share.size == 1:
        return
    for layer in layers:
        for dim, paths in ((0, _CUT_BY_OUTPUTS), (1, _CUT_BY_INPUTS)):
            for path in paths:
                linear = _at(layer, path)
                if linear is not None:
                    assert isinstance(linear, Linear)
                    linear.cut = WeightCut(dim, share)
        for path in _SUMMED:
            module = _at(layer, path)
            if module is not None and share.peers is not None:
                module.register_forward_hook(_Summing(share.peers))


def _at(layer: nn.Module, path: str) -> nn.Module | None:
    module: Any = layer
    for name in path.split("."):
        module = getattr(module, name, None)
    return module if isinstance(module, nn.Module) else None


class _Summing:
    """A hook behind a module: what it gave, summed over the processes."""

    def __init__(self, peers: Sums) -> None:
        self._peers = peers

    def __call__(self, module: nn.Module, given: Any, made: Tensor) -> Tensor:
        return self._peers.sum(made)


def own_tensors(module: nn.Module, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `module`, a share, takes of the state of a whole one."""
    found = dict(whole)
    for prefix, linear in module.named_modules():
        if not isinstance(linear, Linear) or linear.cut is None:
            continue
        weight, bias = f"{prefix}.weight", f"{prefix}.bias"
        cut = linear.pieces(linear.part_sizes)
        assert cut is not None
        found[weight] = cut.of(whole[weight]).clone()
        if bias in whole and cut.dim == 0:
            found[bias] = cut.of(whole[bias]).clone()
        elif bias in whole and linear.cut.share.rank:
            found[bias] = torch.zeros_like(whole[bias])  # the sum over the processes takes it once
    return found


class SharedVocabulary(Linear):
    """An embedding or a head of which each process holds some tokens' rows; it answers for the whole."""

    def __init__(self, in_size: int, vocab_size: int, share: Share, *, bias: bool = False) -> None:
        super().__init__(in_size, (vocab_size // share.size,), bias=bias)
        self.cut = WeightCut(0, share)
        self._share = share

    @property
    def _peers(self) -> Sums:
        assert self._share.peers is not None
        return self._share.peers

    def rows(self, ids: Tensor) -> Tensor:
        own = ids - self._share.span(self.out_size).start
        here = (own >= 0) & (own < self.out_size)
        found = F.embedding(own.clamp(0, self.out_size - 1), self.weight)
        return self._peers.sum(torch.where(here[..., None], found, torch.zeros_like(found)))

    def mean_row(self, weights_RO: Tensor) -> Tensor:
        return self._peers.sum(super().mean_row(weights_RO[:, self._share.span(self.out_size)]))

    def forward(self, x_NI: Tensor, adapters: Sequence[AdapterRows] = ()) -> Tensor:
        return self._peers.join(super().forward(x_NI, adapters))


def vocabulary_linear(
    linear: type[Linear], sizes: tuple[int, int], share: Share, *, bias: bool = False
) -> Linear:
    """An embedding or head of these inputs and tokens, shared where it can be cut equally."""
    in_size, vocab_size = sizes
    if linear is Linear and share.size > 1 and vocab_size % share.size == 0:
        return SharedVocabulary(in_size, vocab_size, share, bias=bias)
    return linear(in_size, (vocab_size,), bias=bias)
