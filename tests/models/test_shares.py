"""Processes that share a model compute what one that holds all of it computes."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.models.test_families import logits, visible
from tests.models.test_transformer import IDS
from tests.parity.checkpoint import Golden, goldens, write
from vermilion.errors import ConfigError
from vermilion.models import adapters, catalog
from vermilion.models.attention import LayeredAttention, Visibility
from vermilion.models.build import build
from vermilion.models.families import Experts, LayerKind
from vermilion.models.linear import AdapterRows
from vermilion.models.shared_layers import own_tensors
from vermilion.models.shares import Pieces, Share
from vermilion.models.transformer import Rows, Transformer
from vermilion.models.weights import TensorFolder

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Threads:
    """Stands in for processes: each of `size` threads has one of `of`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._there = threading.Barrier(size, timeout=20)
        self._given: list[Tensor | None] = [None] * size

    def of(self, rank: int) -> ThreadPeers:
        return ThreadPeers(self, rank)

    def exchange(self, rank: int, tensor: Tensor) -> list[Tensor]:
        self._given[rank] = tensor
        self._there.wait()
        given = [each.clone() for each in self._given if each is not None]
        self._there.wait()
        return given


class ThreadPeers:
    def __init__(self, threads: Threads, rank: int) -> None:
        self._threads, self._rank = threads, rank

    def sum(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._threads.exchange(self._rank, tensor)).sum(0)

    def join(self, tensor: Tensor) -> Tensor:
        return torch.cat(self._threads.exchange(self._rank, tensor), -1)


def together(size: int, made: Callable[[Share], Tensor]) -> list[Tensor]:
    """What each of `size` processes makes with its share."""
    threads = Threads(size)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: made(Share(rank, size, threads.of(rank))), range(size)))


@pytest.mark.parametrize("golden", goldens(), ids=lambda golden: golden.name)
@torch.inference_mode()
def test_a_checkpoint_of_every_kind_can_be_shared(golden: Golden, tmp_path: Path) -> None:
    files = catalog.find(str(write(golden, tmp_path)))
    whole = build(files, torch.float64)
    if whole.spec.architecture.canon_kernel:
        with pytest.raises(ConfigError, match="convolutions run over all heads"):
            build(files, share=Share(0, 2))
        return
    seen = visible(whole.spec, len(IDS))
    wanted = logits(whole.model.eval(), seen)

    def made(share: Share) -> Tensor:
        model = build(files, torch.float64, share=share).model.eval()
        assert model.own.num_heads * share.size == whole.spec.architecture.num_heads
        with torch.inference_mode():
            return logits(model, seen)

    for found in together(2, made):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


EXPERTS = Experts(6, 2, 16, shared_size=8, router="sigmoid", router_bias=True)
ARCHITECTURES = {
    "biases and windows": replace(
        tiny.ARCHITECTURE,
        qkv_bias=True,
        output_bias=True,
        ffn_bias=True,
        qk_norm=True,
        attention_gate=True,
        layers=(LayerKind(window=4), LayerKind(experts=EXPERTS)),
    ),
    "norms on both sides, values from keys, a vocabulary that can be cut": replace(
        tiny.ARCHITECTURE,
        vocab_size=98,
        sandwich_norms=True,
        self_conditioning=True,
        layers=(
            LayerKind(num_kv_heads=4, head_dim=12, values_are_keys=True),
            LayerKind(experts=replace(EXPERTS, scaled_router=True)),
        ),
    ),
    "a diffusion transformer with a head of its own": replace(
        tiny.ARCHITECTURE,
        vocab_size=98,
        condition_size=16,
        ffn_bias=True,
        output_bias=True,
        tied_embeddings=False,
        head_bias=True,
    ),
}


def filled(model: Transformer, seed: int = 3) -> Transformer:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.4, generator=generator)
    return model.double().eval()


def shared(whole: Transformer, share: Share) -> Transformer:
    own = Transformer(whole.architecture, share=share).double().eval()
    own.load_state_dict(own_tensors(own, whole.state_dict()))
    return own


@torch.inference_mode()
def answers(model: Transformer) -> Tensor:
    """Logits of a text whose last rows are noisy, and are conditioned on tokens that are likely."""
    count, num_clean = 9, 5
    pool, at = model.new_pool(count), torch.arange(count)
    likely_RV = torch.softmax(torch.arange(4 * model.architecture.vocab_size).view(4, -1) % 7 * 0.5, -1)
    sight = Visibility(range(count), [0] * count, [0] * count, range(1, count + 1), count, 0)
    sight = replace(sight, positions=range(count), slots=range(count))
    rows = Rows(
        at * 7 % 90,
        at,
        at >= num_clean,
        at,
        LayeredAttention(model.own.layer_kinds(), model.own.num_heads, pool).plan([sight], at[None], count),
        [AdapterRows(adapters.DENOISER, num_clean, count)],
        model.soft_embedding(likely_RV.double()) if model.self_conditioning is not None else None,
        num_clean,
    )
    return model.logits(model(rows, pool))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_whatever_a_layer_has_can_be_shared(name: str) -> None:
    whole = filled(Transformer(ARCHITECTURES[name]))
    for found in together(2, lambda share: answers(shared(whole, share))):
        torch.testing.assert_close(found, answers(whole), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["lora", "copy"])
def test_an_adapter_is_cut_as_the_products_are(kind: str) -> None:
    architecture = ARCHITECTURES["biases and windows"]
    whole, other = filled(Transformer(architecture)), filled(Transformer(architecture), 4)
    weights = {
        f"{name}.weight": linear.part_weight(part).detach()
        for linear, names in other.products()
        for part, name in enumerate(names)
    }
    fresh = adapters.fresh_pairs(other, 4, PROJECTIONS, 0)
    pairs = {name: (a.double(), torch.ones_like(b).double()) for name, (a, b) in fresh.items()}
    plain = answers(whole)

    def adapted(model: Transformer) -> Tensor:
        made = (
            adapters.lora(model, pairs, 0.5)
            if kind == "lora"
            else adapters.second_weights(model, dict(weights))
        )
        adapters.attach(model, adapters.DENOISER, made)
        return answers(model)

    found = together(2, lambda share: adapted(shared(whole, share)))
    wanted = adapted(whole)
    assert (wanted - plain).abs().max() > 0.1
    for each in found:
        torch.testing.assert_close(each, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({}, 3, r"3 processes cannot share.*4 query heads, 2 key heads of 8\. Allowed: 1, 2\."),
        ({"num_heads": 9, "num_kv_heads": 3, "ffn_size": 1536}, 2, r"9 query heads.*Allowed: 1, 3\."),
        ({"joint_qk_norm": True, "qk_norm": True}, 2, "norms all heads of a row together"),
        ({"layers": (LayerKind(experts=EXPERTS), LayerKind())}, 4, r"2 key heads of 8\. Allowed: 1, 2\."),
    ],
)
def test_what_cannot_be_shared_is_refused_with_what_can(
    changes: dict[str, object], size: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Transformer(replace(tiny.ARCHITECTURE, **changes), share=Share(0, size))  # type: ignore[arg-type]


def test_a_process_reads_its_part_of_the_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = catalog.find(str(write(next(each for each in goldens() if each.name == "llada2"), tmp_path)))
    stored = sum(math.prod(shape) for shape in TensorFolder(files.base).shapes().values())
    counted = list[int]()
    inner = Pieces.of

    def of(self: Pieces, stored: Any) -> Tensor:
        found = inner(self, stored)
        assert not isinstance(stored, Tensor)
        counted.append(found.numel())
        return found

    monkeypatch.setattr(Pieces, "of", of)
    together(2, lambda share: torch.tensor(len(list(build(files, share=share).model.parameters()))))
    assert 0.8 * stored < sum(counted) <= stored
