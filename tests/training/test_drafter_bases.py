"""A drafter for any plain base: trained on a tiny checkpoint as it is published, served by both backends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests import peft
from tests.engine.test_matches_reference import SAMPLINGS, prompt
from tests.engine.test_shared_worker import checkpoint
from vermilion.config import EngineConfig
from vermilion.engine.engine import Engine
from vermilion.engine.loading import load_model, read_adapter
from vermilion.models.catalog import ModelFiles
from vermilion.models.configuration import spec_of
from vermilion.training.drafter_recipe import DrafterRecipe
from vermilion.training.drafter_run import train_drafter
from vermilion.types import Decoding, Finish, Grammar, Request, Sampling

BASES = {
    "llama": {"model_type": "llama", "num_hidden_layers": 4},
    "qwen2": {"model_type": "qwen2", "num_hidden_layers": 4, "tie_word_embeddings": False},
    "qwen3": {"model_type": "qwen3", "num_hidden_layers": 4, "head_dim": 24},
}
BACKENDS = {
    "native": {"backend": "native"},
    "torch": {"backend": "torch", "dtype": "float64"},
}


@pytest.fixture(scope="module", params=BASES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a drafter that two steps have moved, and an adapter."""
    home = tmp_path_factory.mktemp(request.param)
    base = checkpoint(home / "base", **BASES[request.param])
    # The drafter begins as the last layers, and guesses well what those decide.
    tensors = load_file(base / "model.safetensors")
    small = {name: 0.02 * value for name, value in tensors.items() if "o_proj" in name or "down_proj" in name}
    save_file(tensors | small, base / "model.safetensors")
    rows = [{"prefix": f"line {i}:", "response": f" {i * i} and {i**3} " * 3} for i in range(9)]
    answers = home / "answers.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = DrafterRecipe(
        base=str(base), output=home / "run", sources=(answers,), block_length=4, rank=8, vocabulary=200,
        held_out=3, texts=3, steps=2, autocast=False, plot=False, device="cpu",
    )  # fmt: skip
    made, progress = train_drafter(recipe)
    assert progress.step == 2
    peft.write(home / "mine", spec_of(ModelFiles("folder", "m", base, None)).architecture, 3)
    return made


def engine(folder: Path, backend: str) -> Engine:
    settings = {"device": "cpu", "threads": 1, "kv_tokens": 2048, **BACKENDS[backend]}
    made = load_model(str(folder), EngineConfig(**settings)).engine  # type: ignore[arg-type]
    assert made.info().backend == backend
    # Rows of so small a model cost too much for any draft; here their worth is not the question.
    made.scheduler.costs = None
    made.adapters.add("mine", read_adapter(made, folder.parent.parent / "mine"))
    return made


def requests(decoding: Decoding) -> list[Request]:
    """Greedy, sampled, with penalties, through an adapter, under a grammar."""
    plain = [Request(f"{i}", prompt(5 + 9 * i, i), one, decoding) for i, one in enumerate(SAMPLINGS)]
    adapted = [
        Request(f"a{i}", prompt(20, i), one, decoding, adapter="mine") for i, one in enumerate(SAMPLINGS)
    ]
    grammar = Grammar("regex", "[a-m]{5}( [0-9]{3}){4}")
    held = Request(
        "g", prompt(12, 5), Sampling(max_tokens=40, temperature=0.8, seed=4), decoding, grammar=grammar
    )
    return [*plain, *adapted, held]


def texts(one: Engine, asked: list[Request]) -> list[tuple[int, ...]]:
    """The tokens of every answer, written side by side."""
    programs = [one.submit(request) for request in asked]
    while one.has_work:
        for _, event in one.step():
            assert not isinstance(event, Finish) or event.reason in ("stop", "length")
    return [tuple(p.tokens[len(r.prompt) :]) for p, r in zip(programs, asked, strict=True)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_drafted_text_is_the_bases_own(folder: Path, backend: str, caplog: pytest.LogCaptureFixture) -> None:
    one = engine(folder, backend)
    plain = texts(one, requests(Decoding("ar")))
    assert texts(one, requests(Decoding("lossless", block_length=8, draft_nodes=12))) == plain
    assert len(set(plain)) == 7
    assert one._drafted["drafter"] > 100
    assert one._accepted["drafter"] > 4
    # A pass of the drafter that fails ends no request: it would not be noticed otherwise.
    assert not caplog.records
