"""From a checkpoint's files to the kernels: every family by its own tensors' names, in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests import tiny
from tests.engine.test_matches_reference import outcome, prompt
from tests.models.test_backbone import through
from tests.native import tiny_native
from tests.native.oracle import unpacked
from tests.native.tiny_native import causal, job
from tests.tiny_families import spec_of
from vermilion.config import EngineConfig
from vermilion.engine.engine import Engine
from vermilion.engine.loading import engine_over
from vermilion.errors import ModelFileError
from vermilion.models.build import base_tensors, expected_shapes, fill
from vermilion.models.catalog import ModelFiles
from vermilion.models.configuration import hugging_face_config
from vermilion.models.families import (
    FAMILIES,
    LLAMA,
    Architecture,
    Experts,
    Family,
    LayerKind,
    ModelSpec,
    TensorNames,
)
from vermilion.models.transformer import Transformer
from vermilion.models.weights import TensorFolder
from vermilion.native import checkpoint_packing
from vermilion.native.checkpoint_tensors import CheckpointTensors
from vermilion.native.packed_file import PackedFile
from vermilion.native.runner import NativeRunner
from vermilion.types import Decoding, Request, Sampling

tiny_native.available_sets()
Record = Callable[[str, object], None]
ON_PYTORCH = {"dhara"}
"""Families whose layers the kernels do not compute: convolutions."""


def written(
    folder: Path, spec: ModelSpec, names: TensorNames, dtype: torch.dtype = torch.bfloat16
) -> Transformer:
    """Random weights as the family publishes them; the backbone that PyTorch reads from there."""
    generator = torch.Generator().manual_seed(5)
    tensors = {
        name: (torch.randn(shape, generator=generator) * 3 / shape[-1] ** 0.5 + ("norm" in name)).to(dtype)
        for name, shape in expected_shapes(spec.architecture, names).items()
    }
    folder.mkdir(exist_ok=True)
    half = len(tensors) // 2
    for part, (first, end) in enumerate(((0, half), (half, len(tensors))), 1):
        save_file(dict(list(tensors.items())[first:end]), folder / f"model-{part:05}-of-00002.safetensors")
    model = Transformer(spec.architecture)
    fill(model, TensorFolder(folder), names, torch.float32, "cpu")
    return model


def assert_read_alike(folder: Path, spec: ModelSpec, model: Transformer) -> None:
    take = CheckpointTensors(ModelFiles("folder", "tiny", folder, None), spec)
    for name, tensor in base_tensors(model).items():
        weight = take(name)
        assert weight is not None, name
        rows = np.concatenate([weight.read(0, 1), weight.read(1, weight.shape[0])])
        assert np.array_equal(rows.reshape(tensor.shape), tensor.numpy()), name


def native_error(model: Transformer, packed: PackedFile) -> float:
    """How far the kernels' logits of a text are from PyTorch's over the unquantised weights, as a share of
    their spread: the median row's mean."""
    ids = list(prompt(28, 1))
    one = NativeRunner(packed, model.architecture, tiny.MASK, (8, 32), 1)
    one.keep_logits = True
    one.run([job(range(8), [causal(ids)], list(range(len(ids))))])
    with torch.inference_mode():
        wanted = through(model, ids, torch.ones(len(ids), len(ids)).tril().bool()).numpy()
    off = np.abs(np.array(one.logits) - wanted).mean(1) / wanted.std()
    return float(np.median(off))


def engine(packed: PackedFile, spec: ModelSpec, **settings: object) -> Engine:
    config = EngineConfig(**{"kv_tokens": 1024, "page_size": 32, "threads": 1, **settings})  # type: ignore[arg-type]

    def make(num_pages: int, page_size: int) -> NativeRunner:
        mask = spec.traits.mask_token_id
        return NativeRunner(packed, spec.architecture, mask, (num_pages, page_size), config.threads)

    return engine_over(make, spec, tiny.Letters(), config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "family", [each for each in FAMILIES if each.name not in ON_PYTORCH], ids=lambda family: family.name
)
def test_every_family_runs_on_the_kernels(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    monkeypatch.setenv("VERMILION_HOME", str(tmp_path / "home"))
    spec = spec_of(family)
    assert not checkpoint_packing.obstacle(spec.architecture)
    model = written(tmp_path / "tiny", spec, family.names)
    assert_read_alike(tmp_path / "tiny", spec, model)
    files = ModelFiles("folder", "tiny", tmp_path / "tiny", None)
    off = native_error(model, checkpoint_packing.open_packed(files, spec, "q8"))
    record_property("family", family.name)
    record_property("native_error", off)
    assert off < 0.1, "and half of that but where a router is undecided"
    packed = checkpoint_packing.open_packed(files, spec, "q4")
    decoding = spec.presets[spec.default_preset] if spec.presets else Decoding("ar")
    sampling = Sampling(max_tokens=24, ignore_eos=True)
    asked = [Request(f"{i}", prompt(5 + 9 * i, i), sampling, decoding) for i in range(3)]
    alone = [outcome(engine(packed, spec), [one])[0].tokens for one in asked]
    assert len(set(alone)) == len(alone)
    crowd = engine(packed, spec, prefill_chunk=8, max_rows=64, threads=2)
    assert [one.tokens for one in outcome(crowd, asked)] == alone


def test_what_the_kernels_do_not_compute_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = LayerKind(experts=Experts(4, 2, 32, shared_size=32))
    beside = replace(tiny_native.PLAIN, layers=(shared, shared))
    assert "shared expert" in checkpoint_packing.obstacle(beside)
    monkeypatch.setitem(checkpoint_packing._COMPUTED, Architecture, {"num_layers"})
    assert "hidden_size 64" in checkpoint_packing.obstacle(tiny_native.PLAIN)


@pytest.mark.parametrize("name", ["odd", "layered", "experts", "grouped"])
def test_every_kind_of_layer_is_read_as_pytorch_reads_it(name: str, tmp_path: Path) -> None:
    spec = tiny_native.spec("causal-shift", name)
    assert_read_alike(tmp_path, spec, written(tmp_path, spec, spec.family.names, torch.float16))


def test_fused_projections_are_read_part_by_part(tmp_path: Path) -> None:
    products = LLAMA.products | {"qkv": ("attention.qkv",), "gate_up": ("mlp.gate_up",)}
    family = replace(FAMILIES[0], names=replace(LLAMA, products=products))
    spec = replace(tiny_native.spec("causal-shift", "odd"), family=family)
    assert_read_alike(tmp_path, spec, written(tmp_path, spec, family.names, torch.float32))


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    spec = tiny_native.spec("causal-shift")
    written(tmp_path, spec, spec.family.names)
    files = ModelFiles("folder", "tiny", tmp_path, None)
    wider = replace(spec, architecture=replace(spec.architecture, ffn_size=128))
    with pytest.raises(ModelFileError, match=r"gate_proj.weight has shape \[96, 64\], expected \[128, 64\]"):
        CheckpointTensors(files, wider)
    deeper = replace(spec, architecture=replace(spec.architecture, num_layers=3))
    with pytest.raises(ModelFileError, match=r"9 missing, such as model\.layers\.2"):
        CheckpointTensors(files, deeper)
    path = tmp_path / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ModelFileError, match="cut short"):
        CheckpointTensors(files, spec)
    path.unlink()
    with pytest.raises(ModelFileError, match="1 parts"):
        CheckpointTensors(files, spec)


_CHILD = """
import resource, sys
from pathlib import Path
from vermilion.models.catalog import ModelFiles
from vermilion.models.configuration import hugging_face_config, spec_from_config
from vermilion.native import checkpoint_packing
from vermilion.text import read_json
import rich.progress, gguf

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

folder = Path(sys.argv[1])
spec = spec_from_config(read_json(folder / "config.json"), "big")
before = peak()
packed = checkpoint_packing.open_packed(ModelFiles("folder", "big", folder, None), spec, "q4")
assert "torch" not in sys.modules
print(packed.size_bytes, peak() - before)
"""


def test_packing_takes_the_packed_weights_and_one_shard_at_the_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """140 MB of weights, in bfloat16, become 44; a copy in float32 would be 280."""
    monkeypatch.setenv("VERMILION_HOME", str(tmp_path / "home"))
    architecture = replace(
        tiny_native.PLAIN, num_layers=4, hidden_size=1024, head_dim=64, num_heads=16, ffn_size=4096,
        vocab_size=4096,
    )  # fmt: skip
    spec = replace(tiny_native.spec("causal-shift"), architecture=architecture)
    folder = tmp_path / "big"
    written(folder, spec, spec.family.names)
    (folder / "config.json").write_text(json.dumps(hugging_face_config(spec)))
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder)], capture_output=True, text=True, check=False, timeout=120
    )
    assert not done.returncode, done.stderr
    packed_bytes, taken = map(int, done.stdout.split())
    shard = max(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert taken < packed_bytes + shard
    whole = PackedFile(next((tmp_path / "home" / "packed").iterdir()))
    assert unpacked(whole, "3.down.0").shape == (1024, 4096)
