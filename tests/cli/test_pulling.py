"""A model that is not on the disk: fetched by the command that needs it, or refused."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli import scripted
from tests.cli.scripted import FakeLLM, settles, vermilion

MODEL = "smollm2-135m-diffusion"


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was fetched; nothing is on the disk."""
    monkeypatch.setenv("VERMILION_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "vermilion.engine.llm", scripted.module())
    names: list[str] = []

    def pull(name: str, on_progress: Callable[[int, int], None]) -> object:
        on_progress(1, 2)
        names.append(name)
        return SimpleNamespace(text_folder=tmp_path)

    monkeypatch.setattr("vermilion.models.catalog.pull", pull)
    monkeypatch.setattr("vermilion.models.configuration.spec_of", lambda files: None)
    monkeypatch.setattr("vermilion.serving.http.server.run", lambda *given: None)
    monkeypatch.setattr("vermilion.evaluation.speed.main", lambda config: {})
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    return names


COMMANDS = (("run", "Why?"), ("chat",), ("serve",), ("bench",))


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda given: given[0])
def test_a_missing_model_is_fetched_first(
    arguments: Sequence[str], fetched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    FakeLLM.answers = [settles("ok")]
    assert vermilion(*arguments) == 0
    assert fetched == [MODEL]
    assert f"Fetching {MODEL}, 98 MB, once" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda given: given[0])
def test_offline_refuses_and_says_what_to_run(
    arguments: Sequence[str], fetched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert vermilion(*arguments, "--offline") == 1
    assert fetched == []
    assert f"{MODEL} is not on this machine. Run: vermilion pull {MODEL}" in capsys.readouterr().err


def test_a_folder_is_never_fetched(fetched: list[str], tmp_path: Path) -> None:
    for folder in (tmp_path / "mine", "./runs/mine"):
        FakeLLM.answers = [settles("ok")]
        assert vermilion("run", "Why?", "--model", str(folder)) == 0
    assert fetched == []


def test_any_repository_of_the_hub_is_fetched(fetched: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    FakeLLM.answers = [settles("ok"), settles("ok")]
    assert vermilion("run", "Why?", "--model", "lab/tiny@v1") == 0
    assert vermilion("run", "Why?", "--model", "sdar:1.7b") == 0
    assert fetched == ["lab/tiny@v1", "sdar:1.7b"]
    said = capsys.readouterr().err
    assert "Fetching lab/tiny@v1, once" in said and "Fetching sdar:1.7b, 4.1 GB, once" in said
    assert vermilion("run", "Why?", "--model", "sdar:1.7b", "--offline") == 1
    assert "sdar:1.7b is not on this machine. Run: vermilion pull sdar:1.7b" in capsys.readouterr().err
