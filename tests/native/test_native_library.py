"""Around the kernels: packed files, choosing a backend, threads that sleep, forks."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize, quantize

from tests import tiny, tiny_gguf
from tests.native import tiny_native
from tests.native.oracle import unpacked
from tests.native.tiny_native import PLAIN, causal, job, random_tensors, runner
from vermilion.config import EngineConfig
from vermilion.engine import loading
from vermilion.errors import ConfigError, ModelFileError
from vermilion.models.families import Experts, LayerKind, ModelSpec
from vermilion.native import checkpoint_packing, library
from vermilion.native.packed_file import PackedFile, PackWriter, Weight, cached, in_memory, pack
from vermilion.native.runner import num_threads

tiny_native.available_sets()
IDS = list(range(2, 60))
# A layer that no published model has.
_BOTH = LayerKind(experts=Experts(num_experts=2, num_active=1, ffn_size=32, shared_size=32))
BEYOND = replace(PLAIN, layers=(_BOTH,) * PLAIN.num_layers)


@pytest.mark.parametrize(
    "kind", [GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0]
)
def test_gguf_blocks_keep_their_values(kind: GGMLQuantizationType) -> None:
    from gguf import quantize

    rows = quantize(np.random.default_rng(1).normal(0, 1, (40, 96)).astype(np.float32), kind)

    def write(writer: PackWriter) -> None:
        writer.matrix("x", Weight.of(rows, int(kind), 96), 8 if kind == GGMLQuantizationType.Q8_0 else 4)

    assert np.array_equal(unpacked(in_memory(write), "x"), dequantize(rows, kind).astype(np.float64))


@pytest.mark.parametrize(("bits", "steps"), [(8, 254), (4, 15)])
def test_floats_move_by_half_a_step(bits: int, steps: int) -> None:
    values = np.random.default_rng(2).normal(0, 1, (17, 64)).astype(np.float32)
    values[3] = 0
    made = unpacked(in_memory(lambda writer: writer.matrix("x", Weight.of(values), bits)), "x")
    blocks = values.reshape(17, 2, 32)
    spread = 2 * np.abs(blocks).max(-1) if bits == 8 else np.ptp(blocks, -1)
    # Half a step, and what a scale in half precision may be off.
    assert (np.abs(made.reshape(blocks.shape) - blocks).max(-1) <= spread * (0.51 / steps + 1e-3)).all()


def test_a_packed_file_is_made_once_and_checked(tmp_path: Path) -> None:
    calls = []

    def write(writer: PackWriter) -> None:
        calls.append(1)
        writer.numbers("x", np.arange(5, dtype=np.float32))

    cached(tmp_path, "model", "0" * 16, write)
    assert cached(tmp_path, "model", "0" * 16, write).address("x") is not None
    assert len(calls) == 1
    made = cached(tmp_path, "model", "1" * 16, write)
    assert len(calls) == 2
    assert made.address("y") is None
    assert [path.name for path in tmp_path.iterdir()] == [f"model-{'1' * 16}.bin"]
    (tmp_path / "other.bin").write_bytes(b"GGUF" * 40)
    with pytest.raises(ModelFileError, match="damaged"):
        PackedFile(tmp_path / "other.bin")


def test_only_what_the_kernels_compute_goes_to_them() -> None:
    for architecture in tiny_native.ARCHITECTURES.values():
        assert checkpoint_packing.obstacle(architecture) == ""
    assert "beside a dense feed-forward" in checkpoint_packing.obstacle(BEYOND)


def test_the_backend_is_chosen_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = tiny_native.spec("causal-shift")
    odd = replace(plain, architecture=BEYOND)

    def chosen(spec: ModelSpec, **settings: object) -> str:
        caplog.clear()
        return loading._chosen_backend(EngineConfig(**settings), spec)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "_has_gpu", lambda: False)
    assert chosen(plain) == "native"
    assert chosen(plain, backend="torch") == "torch"
    assert not caplog.records
    for spec, settings, reason in (
        (odd, {}, "shared expert beside"),
        (plain, {"dtype": "float32"}, "engine.dtype"),
        (plain, {"quantize": "none"}, "engine.quantize"),
        (plain, {"device": "cuda"}, "GPU"),
    ):
        with caplog.at_level(logging.WARNING):
            assert chosen(spec, **settings) == "torch"
        assert reason in caplog.text
        with pytest.raises(ConfigError, match=reason):
            chosen(spec, backend="native", **settings)
    monkeypatch.setattr(library, "LIBRARY_NAME", "_absent.so")
    library.load.cache_clear()
    try:
        assert chosen(plain) == "torch"
        assert len(caplog.records) == 1
        assert "vermilion.native.compile" in caplog.text
    finally:
        library.load.cache_clear()


def test_a_gguf_runs_with_its_blocks_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the loader: rotated halves, quantised embedding, the cache file."""
    from gguf import quantize

    from vermilion.models.catalog import ModelFiles
    from vermilion.models.families import FAMILIES

    kind = GGMLQuantizationType.Q8_0
    tensors = random_tensors(tiny_gguf.ARCHITECTURE)
    path = tiny_gguf.write_gguf(tmp_path / "tiny.gguf", tensors, kind)
    monkeypatch.setenv("VERMILION_HOME", str(tmp_path / "home"))
    family = next(family for family in FAMILIES if family.gguf is not None and family.gguf.interleaved)
    spec = ModelSpec("tiny", tiny_gguf.ARCHITECTURE, tiny.TRAITS["causal-shift"], family)
    files = ModelFiles("gguf", "tiny", path, None)
    packed = checkpoint_packing.open_packed(files, spec, "q8")
    for ours, theirs in {
        "embedding": "model.embed_tokens.weight",
        "1.qkv.0": "model.layers.1.self_attn.q_proj.weight",
        "0.qkv.1": "model.layers.0.self_attn.k_proj.weight",
        "1.down.0": "model.layers.1.mlp.down_proj.weight",
    }.items():
        expected = dequantize(quantize(tensors[theirs], kind), kind)
        assert np.array_equal(unpacked(packed, ours), expected.astype(np.float64))
    assert [each.name for each in (tmp_path / "home" / "packed").iterdir()]


def test_what_the_kernels_do_not_keep_of_a_gguf_is_quantised_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its values, whatever the kind: gguf writes Q5_1, and reads Q4_K and its kin as well."""
    from vermilion.models.catalog import ModelFiles
    from vermilion.models.families import FAMILIES

    kind = GGMLQuantizationType.Q5_1
    tensors = random_tensors(tiny_gguf.ARCHITECTURE)
    path = tiny_gguf.write_gguf(tmp_path / "tiny.gguf", tensors, kind)
    monkeypatch.setenv("VERMILION_HOME", str(tmp_path / "home"))
    family = next(family for family in FAMILIES if family.gguf is not None and family.gguf.interleaved)
    spec = ModelSpec("tiny", tiny_gguf.ARCHITECTURE, tiny.TRAITS["causal-shift"], family)
    packed = checkpoint_packing.open_packed(ModelFiles("gguf", "tiny", path, None), spec, "q8")
    name = "model.layers.1.mlp.down_proj.weight"
    stored = dequantize(quantize(tensors[name], kind), kind)
    expected = unpacked(in_memory(lambda writer: writer.matrix("x", Weight.of(stored), 8)), "x")
    assert np.array_equal(unpacked(packed, "1.down.0"), expected)


def test_threads_come_from_the_settings_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert num_threads(5) == 5
    assert num_threads(0) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert num_threads(0) == len(os.sched_getaffinity(0))


def test_idle_threads_sleep() -> None:
    one = runner(threads=4)
    one.run([job([0, 1, 2, 3], [causal(IDS)], [3])])
    time.sleep(0.02)
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.04


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_has_threads_of_its_own() -> None:
    one = runner(threads=3)
    request = [job([0, 1, 2, 3], [causal(IDS)], [3])]
    expected = one.run(request)
    child = os.fork()
    if not child:
        os._exit(0 if one.run(request) == expected else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert one.run(request) == expected


def test_several_engines_share_the_processor() -> None:
    request = [job([0, 1, 2, 3], [causal(IDS)], [3])]
    runners = [runner(threads=2) for _ in range(3)]
    answers = [one.run(request) for _ in range(5) for one in runners]
    assert all(answer == answers[0] for answer in answers)
    runners[1].close()
    assert runners[0].run(request) == answers[0]


def test_what_no_format_holds_is_refused() -> None:
    with pytest.raises(AssertionError):
        pack(np.zeros((4, 18), np.uint8), int(GGMLQuantizationType.Q4_0), 32, 8)
