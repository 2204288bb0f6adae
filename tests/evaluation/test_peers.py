"""Other engines beside ours: the same file, prompts and tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from vermilion.config import EngineConfig
from vermilion.errors import ConfigError
from vermilion.evaluation import peers, speed
from vermilion.evaluation.peers import LlamaCpp, PeerRound, Setup, opened, peer_row, requantized
from vermilion.models import catalog
from vermilion.models.catalog import DEFAULT_MODEL
from vermilion.models.gguf_file import read_header

_Q4_0, _Q4_1 = 2, 3


@pytest.fixture(scope="module")
def gguf() -> Path:
    return catalog.find(DEFAULT_MODEL).base


@pytest.fixture(scope="module")
def coarse(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with requantized(gguf, tmp_path_factory.mktemp("coarse")) as path:
        yield path


@pytest.mark.model
def test_only_the_coarse_matrices_are_stored_anew(gguf: Path, coarse: Path) -> None:
    before, after = read_header(gguf), read_header(coarse)
    assert {one.name: one.shape for one in before.tensors} == {one.name: one.shape for one in after.tensors}
    wanted = {one.name: _Q4_0 if one.quantization == _Q4_1 else one.quantization for one in before.tensors}
    assert {one.name: one.quantization for one in after.tensors} == wanted
    assert _Q4_0 in wanted.values()
    kept = {name for name in before.metadata if not name.startswith("general.quantization")}
    assert all(after.metadata[name] == before.metadata[name] for name in kept)


def test_a_missing_peer_is_told_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr(speed, "_peer_file", lambda config: None)
    monkeypatch.setattr(speed, "LLM", lambda *given, **named: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=r"vermilion\[peers\]"):
        speed.main(speed.BenchConfig(peer="llama.cpp"))


@pytest.mark.model
def test_it_answers_prompts_given_as_tokens(gguf: Path) -> None:
    tokenizer = catalog.tokenizer_of(catalog.find(DEFAULT_MODEL))
    peer = LlamaCpp(gguf, Setup(threads=1, max_prompt=32, max_tokens=8))
    prompt = tokenizer.encode("The capital of France is")
    assert "Paris" in peer.text(prompt)
    measured = peer.round([prompt, prompt])
    assert measured.num_tokens == 16
    assert measured.wall_s > 0 and measured.prompt_ms > 0


@pytest.mark.model
@pytest.mark.slow
def test_the_benchmark_takes_turns_with_it(tmp_path: Path) -> None:
    output = tmp_path / "speed.jsonl"
    config = speed.BenchConfig(
        presets=("ar",), prompts=1, max_tokens=4, repeats=1, output=output, peer="llama.cpp",
        engine=EngineConfig(prefix_cache=False, threads=1),
    )  # fmt: skip
    speed.main(config)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["preset"] for row in rows] == ["ar", "llama.cpp", "llama.cpp Q4_0", "llama.cpp lookup"]
    best = max(row["tokens_per_s"] for row in rows[1:])
    assert rows[0]["speed_vs_peer"] == pytest.approx(rows[0]["tokens_per_s"] / best)


def test_medians_of_a_peer_are_over_its_rounds() -> None:
    rounds = [PeerRound(10, 1.0, 5.0), PeerRound(10, 0.5, 7.0), PeerRound(10, 2.0, 6.0)]
    row = peer_row("llama.cpp", 4, rounds)
    assert (row.tokens_per_s, row.prompt_ms, row.tokens_per_s_spread) == (10.0, 6.0, 1.5)


def test_an_unknown_peer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"llama\.cpp"), opened("vllm", Path("none.gguf"), []):
        pass
