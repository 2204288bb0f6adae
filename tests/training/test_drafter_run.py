"""A drafter is trained from a base's own texts, resumes where it stopped, and what is written drafts."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.training.conftest import WORDS
from vermilion.config import EngineConfig, build, load, read
from vermilion.data.answers import AnswersConfig
from vermilion.engine.llm import LLM
from vermilion.errors import ConfigError
from vermilion.text import read_json
from vermilion.training.drafter_recipe import DrafterRecipe
from vermilion.training.drafter_run import train_drafter
from vermilion.types import Decoding, Sampling

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "smollm2-135m-drafter.toml"


@pytest.fixture(scope="module")
def answers(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the toy says, several times over."""
    llm, rows = LLM(str(base / "base"), config=EngineConfig(threads=1, kv_tokens=2048)), []
    prompts = [f"count {way}from {word}" for way in ("", "down ") for word in WORDS]
    ids = [llm.chat_prompt([{"role": "user", "content": each}]) for each in prompts]
    said = llm.generate(ids, Sampling(max_tokens=48), "ar")
    rows = [{"prompt": p, "response": a.text or "one"} for p, a in zip(prompts, said, strict=True)]
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 3), encoding="utf-8")
    return path


def recipe(base: Path, answers: Path, output: Path) -> DrafterRecipe:
    return DrafterRecipe(
        base=str(base / "base"), output=output, sources=(answers,), num_layers=1, block_length=4, rank=8,
        vocabulary=64, held_out=6, texts=4, anchors_every=3, steps=6, learning_rate=3e-3, warmup_steps=2,
        validate_every=3, save_every=3, autocast=False, plot=False, device="cpu",
    )  # fmt: skip


def test_a_run_that_was_stopped_ends_as_an_unbroken_one(base: Path, answers: Path, tmp_path: Path) -> None:
    whole, _ = train_drafter(recipe(base, answers, tmp_path / "whole"))
    halves = replace(recipe(base, answers, tmp_path / "halves"), decay_share=0.0, autocast=True)
    unbroken, _ = train_drafter(replace(halves, output=tmp_path / "unbroken"))
    train_drafter(replace(halves, steps=3))
    resumed, progress = train_drafter(halves)
    assert progress.step == 6
    found, wanted = (load_file(folder / "adapter" / "drafter.safetensors") for folder in (resumed, unbroken))
    assert found.keys() == wanted.keys() and all(found[name].equal(wanted[name]) for name in wanted)
    with pytest.raises(ConfigError, match="rank"):
        train_drafter(replace(halves, rank=4))
    further = replace(halves, output=tmp_path / "further", adapter=whole / "adapter", window=9, steps=1)
    written, _ = train_drafter(further)
    assert read_json(written / "adapter" / "drafter.json")["window"] == 9
    with pytest.raises(ConfigError, match="has the shape"):
        train_drafter(replace(further, output=tmp_path / "other", rank=4))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_is_trained_is_accepted_more_often(
    base: Path, answers: Path, tmp_path: Path, device: str
) -> None:
    made, figures = replace(recipe(base, answers, tmp_path), device=device, autocast=device != "cpu"), []
    folder, _ = train_drafter(replace(made, steps=60, validate_every=20), lambda f: figures.append(dict(f)))
    seen = [each["tokens_per_cycle"] for each in figures if "tokens_per_cycle" in each]
    assert figures[-1]["loss"] < 0.7 * figures[0]["loss"] and seen[-1] > 1.5
    llm = LLM(str(folder), config=EngineConfig(device="cpu", threads=1, kv_tokens=2048))
    # Rows of so small a model cost too much for any draft; here their worth is not the question.
    llm.engine.scheduler.costs = None
    ids = llm.chat_prompt([{"role": "user", "content": f"count from {WORDS[0]}"}])
    [plain] = llm.generate([ids], Sampling(max_tokens=40), "ar")
    [drafted] = llm.generate([ids], Sampling(max_tokens=40), Decoding("lossless", draft_nodes=4))
    assert drafted.text == plain.text
    assert llm.engine._accepted["drafter"] > 5


def test_the_shipped_recipe_trains_on_what_its_commands_write() -> None:
    made = build(DrafterRecipe, read(RECIPE))
    told = [
        line.removeprefix("#").strip() for line in RECIPE.read_text().splitlines() if line.startswith("#")
    ]
    listed = "\n".join(told).replace("\\\n", " ").split("\n")
    asked = [shlex.split(line)[3:] for line in listed if line.startswith("vermilion data answers")]
    configs = [load(AnswersConfig, None, [word for word in words if word != "--set"]) for words in asked]
    assert made.sources == tuple(config.output for config in configs)
    assert made.epochs == 3 and f"vermilion convert recipes/{RECIPE.name}" in listed
