"""What a run leaves for people to look at."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from vermilion.training import records
from vermilion.training.records import Records


def figures(step: int) -> dict[str, float]:
    held_out = {"held_out_next": 2.0 / step} if step % 2 == 0 else {}
    return {"step": step, "loss": 3.0 / step, "right": 0.5, "learning_rate": 1e-3, **held_out}


def test_steps_behind_the_last_checkpoint_are_logged_once(tmp_path: Path) -> None:
    with Records(tmp_path, 0, tensorboard=False) as log:
        for step in range(1, 6):
            log.add(figures(step))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with Records(tmp_path, 3, tensorboard=False) as log:
        log.add(figures(4))
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
    ]


def test_the_plot_is_a_picture_and_its_library_may_be_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    with Records(tmp_path, 0, tensorboard=False) as log:
        for step in range(1, 6):
            log.add(figures(step))
    assert records.plot(tmp_path) == tmp_path / "run.png"
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "run.png"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert records.plot(tmp_path) is None
    assert "vermilion[train]" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_figure(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with Records(tmp_path, 0, tensorboard=True) as log:
        log.add(figures(1))
        log.add(figures(2))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in read.Scalars("loss")] == [1, 2]
    assert [event.step for event in read.Scalars("held_out_next")] == [2]
