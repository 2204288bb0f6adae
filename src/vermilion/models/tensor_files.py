"""Which tensors lie where on disk, and which of Hugging Face's Llama's each is. No torch here.

Published names are the checkpoint's own; a family's `TensorNames` are the map between the two.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vermilion.errors import ModelFileError
from vermilion.models.families import LLAMA, Architecture, Experts, LayerKind, TensorNames

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """A tensor of a safetensors file."""

    path: Path
    dtype: str
    """As safetensors spells it."""
    shape: Shape
    offset: int
    """Bytes from the file's start."""


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor by its Llama name, and the rows of a published one that it is."""

    name: str
    published: str
    shape: Shape
    first_row: int = 0


def shards(folder: Path, stem: str) -> list[Path]:
    """`stem`.safetensors, or all of its numbered parts. Raises ModelFileError where one is missing."""
    whole = folder / f"{stem}.safetensors"
    if whole.is_file():
        return [whole]
    parts = sorted(folder.glob(f"{stem}-*-of-*.safetensors"))
    if not parts:
        pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
        note = f" {pickles[0]} is a pickle, which can run code when read: convert it." if pickles else ""
        raise ModelFileError(f"{folder}: no {stem}.safetensors.{note}")
    total = parts[0].stem.rpartition("-")[2]
    if not total.isdecimal() or len(parts) != int(total):
        raise ModelFileError(f"{folder}: {len(parts)} parts of {stem}-*-of-{total}.safetensors are here.")
    return parts


def places(path: Path) -> dict[str, TensorPlace]:
    """The tensors of a safetensors file; raises ModelFileError where it is not sound."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header: dict[str, dict[str, Any]] = json.loads(file.read(size))
        header.pop("__metadata__", None)
        found = {
            name: TensorPlace(
                path, entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0]
            )
            for name, entry in header.items()
        }
        end = max((8 + size + entry["data_offsets"][1] for entry in header.values()), default=0)
        if end > path.stat().st_size:
            raise ValueError("it is cut short")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: not a sound safetensors file ({error}).") from error
    return found


def parts(
    architecture: Architecture, names: TensorNames, given: Mapping[str, Shape]
) -> tuple[list[Part], dict[str, Shape]]:
    """(every tensor of a checkpoint of this architecture, the published ones' shapes). `given`: the published
    names that are there, for experts may be stacked or lie one by one."""
    a = architecture
    embedding = names.embedding if names.embedding in names.bare else f"{names.embedding}.weight"
    found = [
        Part(f"{LLAMA.embedding}.weight", embedding, (a.vocab_size, a.hidden_size)),
        Part(f"{LLAMA.norm}.weight", f"{names.norm}.weight", (a.hidden_size,)),
    ]
    if not a.tied_embeddings:
        found.append(Part(f"{LLAMA.head}.weight", f"{names.head}.weight", (a.vocab_size, a.hidden_size)))
    if a.head_bias:
        found.append(Part(f"{LLAMA.head}.bias", f"{names.head}.bias", (a.vocab_size,)))
    found += _model_parts(a, names)
    stacked = dict[str, Shape]()
    for index, kind in enumerate(a.layer_kinds()):
        ours, theirs = LLAMA.layer.format(index), names.layer.format(index)
        for product, biased in _products(a, kind).items():
            found += _product_parts(a, kind, product, (ours, theirs), names, biased)
        for norm, size in _norms(a, kind).items():
            own, published = LLAMA.norms.get(norm, norm), names.norms.get(norm, norm)
            found.append(Part(f"{ours}{own}.weight", f"{theirs}{published}.weight", (size,)))
        found += _own_parts(a, kind, index, names)
        if kind.experts is not None:
            found += _expert_parts(a.hidden_size, kind.experts, (ours, theirs), names, given, stacked)
    rows = dict[str, int]()
    for part in found:
        rows[part.published] = max(rows.get(part.published, 0), part.first_row + part.shape[0])
    shapes = {part.published: (rows[part.published], *part.shape[1:]) for part in found}
    return found, shapes | stacked


def _products(a: Architecture, kind: LayerKind) -> dict[str, bool]:
    """The products that a layer has, and whether they have biases."""
    dense = {"gate_up": a.ffn_bias, "down": a.ffn_bias} if kind.dense else {}
    return {"qkv": a.qkv_bias, "output": a.output_bias, **dense}


def product_shapes(a: Architecture, kind: LayerKind, product: str) -> list[tuple[int, int]]:
    """[O, I] of each part of a product."""
    queries, keys = a.num_heads * kind.head_dim, kind.num_kv_heads * kind.head_dim
    outputs, inputs = {
        "qkv": ((queries, keys) if kind.values_are_keys else (queries, keys, keys), a.hidden_size),
        "output": ((a.hidden_size,), queries),
        "gate_up": ((a.ffn_size,) if a.condition_size else (a.ffn_size, a.ffn_size), a.hidden_size),
        "down": ((a.hidden_size,), a.ffn_size),
    }[product]
    return [(size, inputs) for size in outputs]


def _product_parts(
    a: Architecture,
    kind: LayerKind,
    product: str,
    prefixes: tuple[str, str],
    names: TensorNames,
    biased: bool,
) -> Iterator[Part]:
    shapes, ours = product_shapes(a, kind, product), LLAMA.products[product]
    theirs = names.products.get(product, ours)
    if product == "gate_up" and a.condition_size:
        ours = ours[1:]
        theirs = names.products.get("up", ours)
    yield from _split(
        [prefixes[0] + name for name in ours], [prefixes[1] + name for name in theirs], shapes, biased
    )


def _split(
    ours: Sequence[str], theirs: Sequence[str], shapes: Sequence[tuple[int, int]], biased: bool
) -> Iterator[Part]:
    """Published one by one, or one below the other under a single name."""
    starts = itertools.accumulate((shape[0] for shape in shapes), initial=0)
    for index, (shape, start) in enumerate(zip(shapes, starts, strict=False)):
        published, first = (theirs[index], 0) if len(theirs) > 1 else (theirs[0], start)
        yield Part(f"{ours[index]}.weight", f"{published}.weight", shape, first)
        if biased:
            yield Part(f"{ours[index]}.bias", f"{published}.bias", shape[:1], first)


def _norms(a: Architecture, kind: LayerKind) -> dict[str, int]:
    made = {"attention_norm": a.hidden_size, "ffn_norm": a.hidden_size}
    if a.qk_norm:
        joint = a.joint_qk_norm
        made["q_norm"] = kind.head_dim * (a.num_heads if joint else 1)
        made["k_norm"] = kind.head_dim * (kind.num_kv_heads if joint else 1)
    if a.sandwich_norms:
        both = ("dense_out_norm", "expert_norm", "expert_out_norm")
        names = ("attention_out_norm", "ffn_out_norm", *(both if kind.dense and kind.experts else ()))
        made |= dict.fromkeys(names, a.hidden_size)
    return made


def _model_parts(a: Architecture, names: TensorNames) -> Iterator[Part]:
    """What a few models have besides their layers, by the paths of our modules."""
    size, told, wide = a.hidden_size, a.condition_size, a.ffn_size
    products: dict[str, list[tuple[int, int]]] = {}
    if told:
        products |= {"condition.first": [(told, 256)], "condition.second": [(told, told)]}
        products["norm.modulation"] = [(2 * size, told)]
    if a.self_conditioning:
        products |= {
            "self_conditioning.gate_up": [(wide, size)] * 2,
            "self_conditioning.down": [(size, wide)],
        }
        norm = "self_conditioning.norm"
        yield Part(f"{norm}.weight", f"{names.model_norms.get(norm, norm)}.weight", (size,))
    if a.embedding_norm:
        norm = "embedding_norm"
        yield Part(f"{norm}.weight", f"{names.model_norms.get(norm, norm)}.weight", (size,))
    for ours, shapes in products.items():
        own = [f"{ours}.{index}" for index in range(len(shapes))]
        yield from _split(own, names.model_products.get(ours, own), shapes, bool(told))


def _own_parts(a: Architecture, kind: LayerKind, index: int, names: TensorNames) -> Iterator[Part]:
    """What layers of a few models have besides, by the paths of our modules."""
    ours, theirs = LLAMA.layer.format(index), names.layer.format(index)
    if a.condition_size:
        shapes = [(6 * a.hidden_size, a.condition_size)]
        published = [theirs + name for name in names.products.get("modulation", ("modulation",))]
        yield from _split([f"{ours}modulation"], published, shapes, True)
    if a.attention_gate:
        published = [theirs + name for name in names.products.get("gate", ("gate",))]
        yield from _split([f"{ours}gate"], published, [(a.num_heads * kind.head_dim, a.hidden_size)], False)
    parameters = {"scale": 1, "noisy_scale": 1} if a.sandwich_norms else {}
    if kind.experts is not None and kind.experts.scaled_router:
        parameters["experts.router.scale"] = a.hidden_size
        parameters["experts.router.expert_scale"] = kind.experts.num_experts
    for path, size in parameters.items():
        published_name = names.parameters.get(path, LLAMA.layer + path).format(index)
        yield Part(ours + path, published_name, (size,))


def _expert_parts(
    hidden_size: int,
    experts: Experts,
    prefixes: tuple[str, str],
    names: TensorNames,
    given: Mapping[str, Shape],
    stacked: dict[str, Shape],
) -> Iterator[Part]:
    e, mine, theirs, (ours, prefix) = experts, LLAMA.experts, names.experts, prefixes
    yield Part(ours + mine.router, prefix + theirs.router, (e.num_experts, hidden_size))
    if e.router_bias:
        yield Part(ours + mine.router_bias, prefix + theirs.router_bias, (e.num_experts,))
    shapes = {
        "gate": (e.ffn_size, hidden_size), "up": (e.ffn_size, hidden_size), "down": (hidden_size, e.ffn_size)
    }  # fmt: skip
    found = {
        which: (name, parts_) for name, parts_ in theirs.stacked.items() if prefix + name in given
        for which in parts_
    }  # fmt: skip
    singly = dict(zip(shapes, (*theirs.gate_up, *theirs.down), strict=True))
    for which, name in zip(shapes, (*mine.gate_up, *mine.down), strict=True):
        for number in range(e.num_experts):
            own = f"{ours}{name.format(number)}.weight"
            if which not in found:
                yield Part(own, f"{prefix}{singly[which].format(number)}.weight", shapes[which])
                continue
            published, held = found[which]
            rows = [shapes[each][0] for each in held]
            first = number * sum(rows) + sum(rows[: held.index(which)])
            stacked[prefix + published] = (e.num_experts, sum(rows), shapes[which][1])
            yield Part(own, prefix + published, shapes[which], first)
    if e.shared_size:
        wide = (e.shared_size, hidden_size)
        yield from _split(
            [ours + name for name in mine.shared_gate_up],
            [prefix + name for name in theirs.shared_gate_up],
            [wide, wide],
            False,
        )
        yield from _split(
            [ours + name for name in mine.shared_down],
            [prefix + name for name in theirs.shared_down],
            [wide[::-1]],
            False,
        )


def check_shapes(path: Path, given: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> None:
    """Raises ModelFileError, naming tensors, unless names and shapes are the same."""
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or unknown:
        listed = [
            f"{len(names)} {kind}, such as {', '.join(names[:3])}"
            for kind, names in (("missing", missing), ("unknown", unknown))
            if names
        ]
        raise ModelFileError(f"{path}: the tensors do not fit the architecture: {'; '.join(listed)}.")
    wrong = [
        f"{name} has shape {list(given[name])}, expected {list(shape)}"
        for name, shape in wanted.items()
        if given[name] != shape
    ]
    if wrong:
        more = f"; {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ModelFileError(f"{path}: {'; '.join(wrong[:3])}{more}.")


def rotate_half_rows(num_rows: int, num_heads: int) -> np.ndarray[Any, Any]:
    """Which GGUF row each Hugging Face row of a q or k projection is.

    GGUF interleaves the two rotated halves of a head (pairs are neighbours); Hugging Face keeps them apart.
    """
    return np.arange(num_rows).reshape(num_heads, -1, 2).swapaxes(1, 2).reshape(-1)
