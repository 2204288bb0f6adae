"""Tiny random models for the kernels, of every shape they know, and engines over them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from tests import tiny
from tests.engine import test_grammar
from vermilion.config import EngineConfig
from vermilion.decoding.forward_jobs import Job, Wanted
from vermilion.decoding.passes import Pass, Read, Segment
from vermilion.engine.engine import Engine
from vermilion.engine.loading import engine_over
from vermilion.models.families import LLAMA, Architecture, Experts, LayerKind, ModelSpec, RopeScaling
from vermilion.models.tensor_files import parts
from vermilion.native import library
from vermilion.native.checkpoint_packing import (
    PackedAdapter,
    layer_products,
    pack_base,
    products_with_axes,
)
from vermilion.native.packed_file import Array, PackedFile, PackWriter, Weight, in_memory
from vermilion.native.runner import NativeRunner
from vermilion.native.stored_sizes import Axis, run
from vermilion.types import Sampling

PLAIN = Architecture(
    num_layers=2, hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=16, ffn_size=96,
    vocab_size=tiny.VOCAB, context_length=512,
)  # fmt: skip
ARCHITECTURES = {
    "plain": PLAIN,
    "biased": replace(PLAIN, qkv_bias=True, tied_embeddings=False, num_kv_heads=1, rope_theta=1e5),
    "normed": replace(PLAIN, qk_norm=True, rope_fraction=0.5, head_dim=32, num_heads=3, num_kv_heads=3),
    "wide": replace(PLAIN, head_dim=80, num_heads=2, num_kv_heads=2, hidden_size=96, ffn_size=160),
}
_SPARSE = Experts(num_experts=8, num_active=3, ffn_size=48, normalized=False)
_GROUPED = Experts(
    num_experts=12, num_active=3, ffn_size=32, shared_size=64, router="sigmoid", router_bias=True, scale=2.5,
    num_groups=4, num_active_groups=2,
)  # fmt: skip
# Sizes that fill no block, and what a few families add to the plain layer.
ARCHITECTURES["odd"] = replace(
    PLAIN, hidden_size=72, num_heads=3, num_kv_heads=1, head_dim=24, ffn_size=80,
    output_bias=True, ffn_bias=True, qkv_bias=True, activation="gelu_tanh",
    attention_scale=0.4, embedding_scale=3.0, logit_softcap=7.0, query_growth=0.3, query_period=8,
    rope_scaling=RopeScaling("yarn", {"factor": 4.0, "original_max_position_embeddings": 16.0}),
)  # fmt: skip
ARCHITECTURES["layered"] = replace(
    PLAIN, num_layers=3, qk_norm=True, value_norm=True, activation="gelu",
    layers=(
        LayerKind(window=5),
        LayerKind(head_dim=40, num_kv_heads=1, rope_theta=1e6, rope_fraction=0.4, values_are_keys=True),
        LayerKind(window=19, rotated=False),
    ),
)  # fmt: skip
ARCHITECTURES["experts"] = replace(
    PLAIN, qk_norm=True, joint_qk_norm=True, num_kv_heads=1, head_dim=24, rope_fraction=0.5,
    layers=(LayerKind(experts=_SPARSE, dense=False), LayerKind(experts=replace(_SPARSE, normalized=True))),
)  # fmt: skip
ARCHITECTURES["grouped"] = replace(
    PLAIN, hidden_size=72, layers=(LayerKind(), LayerKind(experts=_GROUPED, dense=False))
)
_ROUTED = replace(_SPARSE, normalized=True, scaled_router=True)
ARCHITECTURES["sandwich"] = replace(
    PLAIN, hidden_size=72, num_kv_heads=1, qk_norm=True, value_norm=True, attention_scale=1.0,
    activation="gelu_tanh", embedding_scale=8.0, logit_softcap=30.0, sandwich_norms=True,
    self_conditioning=True,
    layers=(
        LayerKind(window=7, experts=_ROUTED),
        LayerKind(
            head_dim=24, values_are_keys=True, rope_fraction=0.25, rope_scaling=RopeScaling("proportional")
        ),
    ),
)  # fmt: skip
ARCHITECTURES["modulated"] = replace(
    PLAIN, hidden_size=72, head_dim=24, num_heads=3, num_kv_heads=3, ffn_bias=True, head_bias=True,
    activation="gelu_tanh", tied_embeddings=False, condition_size=20,
)  # fmt: skip
ARCHITECTURES["gated"] = replace(
    PLAIN, hidden_size=72, head_dim=24, num_heads=3, num_kv_heads=3, qk_norm=True, late_qk_norm=True,
    rope_backwards=True, attention_gate=True, embedding_norm=True,
)  # fmt: skip
ARCHITECTURES["bytes"] = replace(PLAIN, vocab_size=test_grammar.VOCAB)
RANK = 5
PAGE = 16


def available_sets() -> list[str]:
    """The instruction sets of this processor."""
    try:
        library.load()
    except library.LibraryMissing as error:
        pytest.skip(str(error), allow_module_level=True)
    return [
        name for name in ("scalar", "avx2", "avxvnni", "avx512vnni", "neon") if library.instruction_set(name)
    ]


def shapes_of(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Every tensor by Hugging Face's name."""
    return {part.name: part.shape for part in parts(architecture, LLAMA, {})[0]}


def random_tensors(architecture: Architecture, seed: int = 0, spread: float = 3.0) -> dict[str, Array]:
    """float32 by Hugging Face's names, sharp enough that answers are not noise: a projection multiplies by
    `spread`."""
    draw = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes_of(architecture).items():
        values = draw.normal(0, 0.3 if len(shape) == 1 else spread / shape[-1] ** 0.5, shape)
        made[name] = (values + 1 if "norm" in name else values).astype(np.float32)
    return made


def random_pairs(
    architecture: Architecture, seed: int, parts: str = "_proj"
) -> dict[str, tuple[Array, Array]]:
    """LoRA pairs for the projections whose names hold `parts`."""
    draw, shapes = np.random.default_rng(seed), shapes_of(architecture)
    return {
        name: (
            draw.normal(0, 0.2, (RANK, shapes[f"{name}.weight"][1])).astype(np.float32),
            draw.normal(0, 0.3, (shapes[f"{name}.weight"][0], RANK)).astype(np.float32),
        )
        for _, names in layer_products(architecture)
        for name in names
        if parts in name
    }


@cache
def packed(name: str, bits: int = 8, *, denoiser: bool = True, spread: float = 3.0) -> PackedFile:
    """A whole model: base, denoiser, mask embedding and draft head."""
    architecture = ARCHITECTURES[name]
    tensors, draw = random_tensors(architecture, spread=spread), np.random.default_rng(9)

    def take(wanted: str) -> Weight | None:
        return Weight.of(tensors[wanted]) if wanted in tensors else None

    def write(writer: PackWriter) -> None:
        pack_base(writer, architecture, take, bits)
        if not denoiser:
            return
        pairs = random_pairs(architecture, 1)
        for product, names, axes in products_with_axes(architecture):
            writer.low_rank(f"{product}.denoiser", [pairs[name] for name in names], 0.5, axes)
        size = architecture.hidden_size
        writer.numbers("mask_embedding", run(size).fill(draw.normal(0, 1, size).astype(np.float32), 0))
        down, up = draw.normal(0, 0.2, (32, 2 * size)), draw.normal(0, 0.1, (size, 32))
        both = Axis(size, run(size).total, 2)
        writer.matrix("draft_down", Weight.of(down.astype(np.float32)), 8, inputs=both)
        writer.matrix("draft_up", Weight.of(up.astype(np.float32)), 8, run(size))

    return in_memory(write)


def packed_adapter(architecture: Architecture, seed: int, parts: str = "_proj") -> PackedAdapter:
    pairs = random_pairs(architecture, seed, parts)

    def write(writer: PackWriter) -> None:
        for product, names, axes in products_with_axes(architecture):
            writer.low_rank(product, [pairs.get(name) for name in names], 1.0, axes)

    return PackedAdapter(in_memory(write))


def runner(
    name: str = "plain", bits: int = 8, *, pool: tuple[int, int] = (32, PAGE), threads: int = 1, isa: str = ""
) -> NativeRunner:
    made = NativeRunner(packed(name, bits), ARCHITECTURES[name], tiny.MASK, pool, threads, isa)
    made.keep_logits = True
    return made


def spec(kind: str, name: str = "plain") -> ModelSpec:
    return replace(tiny.spec(kind), architecture=ARCHITECTURES[name])


def engine(kind: str = "causal-shift", bits: int = 8, name: str = "plain", **settings: object) -> Engine:
    """`name`: one of `ARCHITECTURES`."""
    return _over(spec(kind, name), name, bits, tiny.Letters(), settings)


def bytes_engine(**settings: object) -> Engine:
    """Its tokens spell JSON."""
    one = replace(spec("causal-shift", "bytes"), traits=test_grammar.TRAITS)
    return _over(one, "bytes", 8, test_grammar.Bytes(), settings)


def _over(one: ModelSpec, name: str, bits: int, tokenizer: object, settings: dict[str, object]) -> Engine:
    config = EngineConfig(**{"kv_tokens": 1024, "page_size": PAGE, "threads": 1, **settings})  # type: ignore[arg-type]
    mask = one.traits.mask_token_id

    def make(num_pages: int, page_size: int) -> NativeRunner:
        pool = (num_pages, page_size)
        return NativeRunner(packed(name, bits), one.architecture, mask, pool, config.threads)

    return engine_over(make, one, tokenizer, config)  # type: ignore[arg-type]


def job(
    pages: list[int],
    segments: list[Segment],
    rows: list[int],
    *,
    adapter: str = "",
    want: Wanted | None = None,
) -> Job:
    """Reads `rows`, all for the same."""
    reads = tuple(Read(row, 0, "next") for row in rows)
    return Job(pages, Pass(tuple(segments), reads), [want or Wanted(Sampling(), 0)] * len(rows), adapter)


def causal(ids: list[int], start: int = 0) -> Segment:
    return Segment(tuple(ids), start, start, sees=start, span=1)
