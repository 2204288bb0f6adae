"""`vermilion convert`, and the recipes that come with the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from vermilion.cli.train import convert
from vermilion.config import load
from vermilion.errors import ConfigError
from vermilion.training import convert as conversion
from vermilion.training.recipe import Recipe
from vermilion.training.run import Progress

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


OF_OTHER_KINDS = {"data", "fim-data", "smollm2-135m-drafter", "smollm2-135m-fim", "smollm2-135m-fim-lines"}


@pytest.mark.parametrize(
    "name", sorted(path.name for path in RECIPES.glob("*.toml") if path.stem not in OF_OTHER_KINDS)
)
def test_the_projects_recipes_are_sound(name: str) -> None:
    recipe = load(Recipe, RECIPES / name)
    assert recipe.stages[-1].until == 1.0
    assert recipe.rows % recipe.micro_rows == 0


def test_it_prints_the_models_folder_alone_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given: list[Recipe] = []

    def stand_in(recipe: Recipe, on_step) -> tuple[Path, Progress]:  # type: ignore[no-untyped-def]
        given.append(recipe)
        on_step({"step": 1, "loss": 2.5, "done": 0.1})
        return tmp_path / "model", Progress(step=7, tokens=1234)

    monkeypatch.setattr(conversion, "convert", stand_in)
    convert(RECIPES / "toy.toml", ["steps=7", "objective.teacher=0.1"])
    assert (given[0].steps, given[0].objective.teacher) == (7, 0.1)
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'model'}\n"
    assert "step 1: loss 2.5" in captured.err and "7 steps, 1,234 tokens" in captured.err


@pytest.mark.parametrize(
    ("changes", "teacher", "next_token"),
    [
        ([], 0.7, 0.0),
        (["method=copy"], 0.7, 0.0),
        (["method=tied"], 0.0, 1.0),
        (["method=tied", "context=block"], 0.0, 1.0),
        (["method=tied", "context=block", "shift=false"], 0.0, 0.0),
        (["method=tied", "context=full", "shift=false"], 0.0, 0.0),
        (["method=tied", "objective.teacher=0.5"], 0.5, 1.0),
    ],
)
def test_the_objectives_defaults_follow_the_method(
    monkeypatch: pytest.MonkeyPatch, changes: list[str], teacher: float, next_token: float
) -> None:
    given: list[Recipe] = []

    def stand_in(recipe: Recipe, on_step) -> tuple[Path, Progress]:  # type: ignore[no-untyped-def]
        given.append(recipe)
        return Path(), Progress()

    monkeypatch.setattr(conversion, "convert", stand_in)
    convert(RECIPES / "toy.toml", changes)
    assert (given[0].objective.teacher, given[0].objective.next_token) == (teacher, next_token)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("steps=0", "steps, epochs, minutes"),
        ("stages=[{until=0.5, block_length=4}]", "until"),
        ("stages=[{until=1.0, block_length=1}]", "block_length"),
        ("rank=0", "rank"),
        ("alpha=0", "alpha"),
        ("decay_share=2", "decay_share"),
        ("corruption.full=-1", "corruption"),
        ("objective.teacher=3", "teacher"),
        ("learning=1", "learning_rate"),
    ],
)
def test_a_bad_setting_is_named(change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(Recipe, RECIPES / "toy.toml", [change])
