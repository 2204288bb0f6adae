"""`vermilion bench --passes` on a checkpoint of a published shape, next to llama.cpp on the same weights."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.native import tiny_native
from vermilion.config import EngineConfig
from vermilion.engine.llm import LLM
from vermilion.errors import ConfigError
from vermilion.evaluation import speed
from vermilion.evaluation.pass_times import ROWS
from vermilion.native.runner import NativeRunner
from vermilion.types import Sampling

tiny_native.available_sets()
SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "synthetic_checkpoint.py"
ENGINE = EngineConfig(backend="native", quantize="q4", kv_tokens=2048, threads=1, prefix_cache=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("synthetic")
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["--shape", "tiny", "--folder", str(made / "tiny"), "--gguf", str(made / "tiny.gguf")]
        patch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return made


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERMILION_HOME", str(tmp_path))


def test_a_synthetic_checkpoint_answers(folder: Path) -> None:
    llm = LLM(str(folder / "tiny"), config=ENGINE)
    worker = llm.engine.worker
    assert isinstance(worker, NativeRunner)
    prompt = llm.chat_prompt([{"role": "user", "content": "Hello"}])
    [answer] = llm.generate([prompt], Sampling(max_tokens=8, ignore_eos=True), "fast")
    assert answer.usage.completion_tokens == 8
    # The embedding's other rows are not read: 4,096 of 256 in eight bits, a scale for each 32.
    assert worker.bytes_per_pass < worker.weights.size - 4096 * 256


def test_passes_are_measured_beside_the_floor_and_the_peer(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("xllamacpp")
    config = speed.BenchConfig(
        str(folder / "tiny"), repeats=1, peer="llama.cpp", peer_file=folder / "tiny.gguf", passes_only=True,
        output=tmp_path / "rows.jsonl", engine=ENGINE,
    )  # fmt: skip
    document = speed.main(config)
    assert not document["rows"]
    measured: list[dict[str, Any]] = document["passes"]
    assert [row["rows"] for row in measured] == [rows for rows in ROWS for _ in range(2)]
    assert {row["engine"] for row in measured} == {"native", "llama.cpp"}
    for row in measured:
        assert row["ms"] > 0
        assert (row["floor_ms"] > 0) == (row["engine"] == "native")
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["benchmark"] for row in written] == ["passes"] * len(measured)
    assert "floor" in capsys.readouterr().out


def test_presets_of_a_model_without_a_base_are_measured(folder: Path) -> None:
    config = speed.BenchConfig(
        str(folder / "tiny"), ("fast",), prompts=1, max_tokens=8, repeats=1, engine=ENGINE
    )
    [row] = speed.main(config)["rows"]
    assert row["tokens_per_s"] > 0
    assert row["product_share"] is None and row["base_logprob"] is None


def test_a_peer_needs_a_file_that_it_reads(folder: Path) -> None:
    config = speed.BenchConfig(str(folder / "tiny"), peer="llama.cpp", passes_only=True, engine=ENGINE)
    with pytest.raises(ConfigError, match="--peer-file"):
        speed.main(config)
