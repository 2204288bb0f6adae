"""Every recipe that is shipped parses, and starts: one step of it, on a tiny base and tiny data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vermilion.config import build, load, merge, read
from vermilion.models.catalog import ASSETS, DEFAULT_MODEL
from vermilion.models.denoiser_file import DENOISER_FILE
from vermilion.training import finetune, toy
from vermilion.training.convert import convert
from vermilion.training.recipe import CONVERSIONS, Recipe

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.toml"))
TOY = next(file for file in RECIPES if file.stem == "toy")
NOT_OF_TRAINING = {"data", "fim-data", "smollm2-135m-drafter"}
"""Of other kinds: tests/data/test_pipeline.py and tests/training/test_drafter_run.py run them."""


@pytest.mark.parametrize("file", [f for f in RECIPES if f.stem not in NOT_OF_TRAINING], ids=lambda f: f.stem)
def test_it_parses_and_takes_a_step(base: Path, tmp_path: Path, file: Path) -> None:
    made = toy.make(base, 0)
    changes = [
        f"base={made['base']}", f"output={tmp_path}", f"mask_token_id={made['mask_token_id']}", "steps=1",
        "minutes=0", "epochs=0", "rows=2", "micro_rows=1", "rank=2", "data.length=96", "data.held_out=1",
        f'data.sources=[{{path="{made["data"].sources[0].path}"}}]', "device=cpu", "attention=dense",
        "compile=false", "plot=false",
    ]  # fmt: skip
    if read(file).get("method") in ("lora", "full"):
        folder, progress = finetune.tune(build(Recipe, merge(finetune.with_defaults(read(file)), changes)))
    else:
        if read(file).get("method") == "draft_head":  # goes on from a denoiser
            first = load(Recipe, TOY, [*changes, f"output={tmp_path / 'first'}"])
            changes.append(f"adapter={convert(first)[0] / 'adapter'}")
        one = load(Recipe, file, changes)
        assert one.method in CONVERSIONS
        folder, progress = convert(one)
    assert progress.step == 1 and any(folder.rglob("*.safetensors"))


def test_recipes_of_the_embedded_model_mask_with_its_own_token() -> None:
    shipped = json.loads((ASSETS / DEFAULT_MODEL / DENOISER_FILE).read_text())["mask_token_id"]
    wanting = [
        file.stem
        for file in RECIPES
        if read(file).get("base") == DEFAULT_MODEL
        and read(file).get("method", "adapter") in ("adapter", "copy", "tied")
        and read(file).get("mask_token_id") != shipped
    ]
    assert not wanting


def test_no_recipe_is_left_out() -> None:
    assert {file.stem for file in RECIPES} > NOT_OF_TRAINING and len(RECIPES) >= 7
