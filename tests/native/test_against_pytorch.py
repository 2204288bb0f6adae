"""The native backend against the backbone in PyTorch over the same weights, as the packed file holds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.models import plain
from tests.native import tiny_native
from tests.native.oracle import unpacked
from tests.native.tiny_native import ARCHITECTURES, causal, job, packed
from vermilion.models.families import LLAMA, Architecture
from vermilion.models.tensor_files import parts
from vermilion.native.checkpoint_packing import NORMS, products_with_axes
from vermilion.native.packed_file import Array, PackedFile
from vermilion.native.runner import NativeRunner
from vermilion.native.stored_sizes import Axis, heads, run

tiny_native.available_sets()
IDS = [(37 * i + 11) % 90 + 2 for i in range(40)]
PAGES = [5, 2, 9]


def kept(values: Array, axis: Axis, which: int) -> Array:
    """Without what fills up."""
    at = np.arange(axis.groups)[:, None] * axis.stored + np.arange(axis.size)
    return values.take(at.reshape(-1), which)


def numbers(file: PackedFile, name: str, size: int) -> Array:
    start = file._entries[name]["offset"]
    made: Array = file._data[start : start + 4 * size].view(np.float32).astype(float)
    return made


def weights(file: PackedFile, a: Architecture) -> dict[str, Tensor]:
    """Under the names of Hugging Face's Llama, as the kernels read them."""
    hidden, made = run(a.hidden_size), {}
    made["model.embed_tokens.weight"] = kept(unpacked(file, "embedding"), hidden, 1)
    made["model.norm.weight"] = numbers(file, "norm", a.hidden_size)
    if not a.tied_embeddings:
        made["lm_head.weight"] = kept(unpacked(file, "head"), hidden, 1)
    for name, names, (outputs, inputs) in products_with_axes(a):
        for index, part in enumerate(names):
            rows = kept(unpacked(file, f"{name}.{index}"), outputs[index], 0)
            made[f"{part}.weight"] = kept(rows, inputs, 1)
            if f"{name}.bias.{index}" in file:
                bias = numbers(file, f"{name}.bias.{index}", outputs[index].total)
                made[f"{part}.bias"] = kept(bias, outputs[index], 0)
    for index, kind in enumerate(a.layer_kinds()):
        prefix = LLAMA.layer.format(index)
        for ours, theirs in NORMS.items():
            if f"{index}.{ours}" not in file:
                continue
            count = {"query_norm": a.num_heads, "key_norm": kind.num_kv_heads}.get(ours, 0)
            axis = heads(count if a.joint_qk_norm else 1, kind.head_dim) if count else hidden
            values = kept(numbers(file, f"{index}.{ours}", axis.total), axis, 0)
            made[f"{prefix}{LLAMA.norms[theirs]}.weight"] = values
        if kind.experts is not None:
            made |= _experts(file, f"{index}.experts", prefix, hidden, a)
    return {name: torch.from_numpy(values) for name, values in made.items()}


def _experts(file: PackedFile, name: str, prefix: str, hidden: Axis, a: Architecture) -> dict[str, Array]:
    e, names = a.layer_kinds()[int(name.split(".", maxsplit=1)[0])].experts, LLAMA.experts
    assert e is not None
    wide, router = run(e.ffn_size), numbers(file, f"{name}.router", e.num_experts * hidden.total)
    made = {prefix + names.router: kept(router.reshape(e.num_experts, -1), hidden, 1)}
    if f"{name}.router_bias" in file:
        made[prefix + names.router_bias] = numbers(file, f"{name}.router_bias", e.num_experts)
    for number in range(e.num_experts):
        for part, theirs, outputs, inputs in (
            ("gate", names.gate_up[0], wide, hidden),
            ("up", names.gate_up[1], wide, hidden),
            ("down", names.down[0], hidden, wide),
        ):
            rows = kept(unpacked(file, f"{name}.{part}.{number}"), outputs, 0)
            made[f"{prefix}{theirs.format(number)}.weight"] = kept(rows, inputs, 1)
    return made


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "name", [name for name in ARCHITECTURES if name not in ("sandwich", "modulated", "gated")]
)
def test_logits_are_those_of_the_backbone_within_the_published_error(name: str, bits: int) -> None:
    """Activations of eight bits and half-precision keys move a logit by 2 % of their spread."""
    a = ARCHITECTURES[name]
    file = packed(name, bits, denoiser=False, spread=1.0)
    theirs = weights(file, a)
    assert {part.name for part in parts(a, LLAMA, {})[0]} == theirs.keys()
    visible = torch.ones(len(IDS), len(IDS), dtype=torch.bool).tril()
    wanted = plain.logits(theirs, a, IDS, visible).numpy()
    one = NativeRunner(file, a, tiny.MASK, (32, tiny_native.PAGE), 1)
    one.keep_logits = True
    one.run([job(PAGES, [causal(IDS)], list(range(len(IDS))))])
    off = np.abs(one.logits - wanted).mean(1) / wanted.std()
    assert np.median(off) < 0.025
