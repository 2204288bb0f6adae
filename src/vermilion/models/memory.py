"""How much memory a model of a given shape takes, before any of it is read. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from vermilion.models.families.architecture import PLAIN_LAYER, Architecture, LayerKind

Format = Literal["q4", "q8", "int8", "fp8", "bf16", "float32"]
FORMATS: tuple[Format, ...] = ("q4", "q8", "bf16")
"""Those that people choose between: two of the native backend, and a GPU's."""

_TILE_OUTPUTS = 16
_BLOCK_INPUTS = 32
_ALIGNMENT = 64
# Bytes of 16 outputs by 32 inputs in the native backend's tiles, scales included (native/kernels/model.h).
_BLOCK_BYTES = {4: 320, 8: 544}
_BITS: dict[Format, int] = {"q4": 4, "q8": 8}
_NUMBER_BYTES: dict[Format, int] = {"bf16": 2, "float32": 4}

Matrix = tuple[int, int, int]
"""(how many alike, outputs, inputs)."""


def num_parameters(architecture: Architecture) -> int:
    """Of the backbone, without a denoiser beside it."""
    tables = _tables(architecture)
    matrices = (*tables, *_projections(architecture), *_modulations(architecture))
    return _num_vectors(architecture) + sum(n * o * i for n, o, i in matrices)


def weight_bytes(architecture: Architecture, kind: Format) -> int:
    """Of the loaded weights. The native formats keep embeddings in 8 bits, vectors and routers in float32."""
    if kind in _NUMBER_BYTES:
        return num_parameters(architecture) * _NUMBER_BYTES[kind]
    if kind in ("int8", "fp8"):
        return _eight_bit_bytes(architecture, kind)
    tables = sum(_tiled(matrix, 8) for matrix in _tables(architecture))
    projections = sum(_tiled(matrix, _BITS[kind]) for matrix in _projections(architecture))
    # Of modulations it keeps what they come to: a shift and a gate beside each norm.
    return tables + projections + 4 * _num_vectors(architecture)


def _eight_bit_bytes(a: Architecture, kind: Format) -> int:
    """On a GPU: a byte for each weight, two for each output's scale and for all else; in `fp8` tables of the
    vocabulary are as they are."""
    tables = [] if kind == "fp8" else _tables(a)
    stored = (*tables, *_projections(a), *_modulations(a))
    return 2 * num_parameters(a) - sum(count * outputs * (inputs - 2) for count, outputs, inputs in stored)


def cache_bytes_per_token(architecture: Architecture, kind: Format) -> int:
    """What one position leaves in all layers: keys, values, and inputs of convolutions; two bytes a number,
    four in float32. PyTorch's cache gives each layer what the largest needs."""
    sizes = [_kv_heads(architecture, each) * _head_dim(architecture, each) for each in _layers(architecture)]
    numbers = sum(sizes) if kind in _BITS else len(sizes) * max(sizes)
    numbers += len(sizes) * sum(architecture.convolutions().values()) // 2
    return 2 * numbers * (4 if kind == "float32" else 2)


def _layers(a: Architecture) -> tuple[LayerKind, ...]:
    return a.layers or (PLAIN_LAYER,) * a.num_layers


def _head_dim(a: Architecture, layer: LayerKind) -> int:
    return layer.head_dim or a.head_dim


def _kv_heads(a: Architecture, layer: LayerKind) -> int:
    return layer.num_kv_heads or a.num_kv_heads


def _tables(a: Architecture) -> list[Matrix]:
    return [(1 if a.tied_embeddings else 2, a.vocab_size, a.hidden_size)]


def _projections(a: Architecture) -> Iterator[Matrix]:
    for layer in _layers(a):
        head_dim, hidden, experts = _head_dim(a, layer), a.hidden_size, layer.experts
        yield 1, a.num_heads * head_dim, hidden
        yield 1 if layer.values_are_keys else 2, _kv_heads(a, layer) * head_dim, hidden
        yield 2 if a.attention_gate else 1, hidden, a.num_heads * head_dim
        if layer.dense:
            yield from _gated(1, hidden, a.ffn_size) if not a.condition_size else _plain(hidden, a.ffn_size)
        if experts is not None:
            yield from _gated(experts.num_experts, hidden, experts.ffn_size)
            yield from _gated(1, hidden, experts.shared_size) if experts.shared_size else ()
    if a.self_conditioning:
        yield from _gated(1, a.hidden_size, a.ffn_size)


def _modulations(a: Architecture) -> Iterator[Matrix]:
    """What tells the norms of a diffusion transformer of its condition."""
    if told := a.condition_size:
        yield from ((1, told, 256), (1, told, told), (1, 2 * a.hidden_size, told))
        yield a.num_layers, 6 * a.hidden_size, told


def _plain(hidden: int, ffn: int) -> tuple[Matrix, Matrix]:
    return (1, ffn, hidden), (1, hidden, ffn)


def _gated(count: int, hidden: int, ffn: int) -> tuple[Matrix, Matrix]:
    return (2 * count, ffn, hidden), (count, hidden, ffn)


def _num_vectors(a: Architecture) -> int:
    """Numbers of norms, biases and routers, which are not quantised."""
    count = a.hidden_size * (2 if a.self_conditioning else 1) + (a.vocab_size if a.head_bias else 0)
    count += 2 * (a.condition_size + a.hidden_size) if a.condition_size else 0
    count += a.hidden_size if a.embedding_norm else 0
    kernels = a.canon_kernel * sum(a.convolutions().values())
    for layer in _layers(a):
        head_dim = _head_dim(a, layer)
        count += 2 * a.hidden_size + kernels + (head_dim // 2 if kernels else 0)
        normed = a.num_heads + _kv_heads(a, layer) if a.joint_qk_norm else 2
        count += normed * head_dim if a.qk_norm else 0
        count += (a.num_heads + 2 * _kv_heads(a, layer)) * head_dim if a.qkv_bias else 0
        count += a.hidden_size if a.output_bias else 0
        wide = a.ffn_size if a.condition_size else 2 * a.ffn_size
        count += wide + a.hidden_size if a.ffn_bias and layer.dense else 0
        count += 6 * a.hidden_size if a.condition_size else 0
        if a.sandwich_norms:
            count += (5 if layer.dense and layer.experts else 2) * a.hidden_size + 2
        if layer.experts is not None:
            count += layer.experts.num_experts * (a.hidden_size + layer.experts.router_bias)
            count += a.hidden_size + layer.experts.num_experts if layer.experts.scaled_router else 0
    return count


def _tiled(matrix: Matrix, bits: int) -> int:
    count, outputs, inputs = matrix
    tile = -(-inputs // _BLOCK_INPUTS) * _BLOCK_BYTES[bits]
    return count * -(-outputs // _TILE_OUTPUTS) * (-(-tile // _ALIGNMENT) * _ALIGNMENT)
