"""`vermilion doctor` says what runs models here, also where there is none to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from vermilion.cli.doctor import doctor
from vermilion.native import library


def test_it_tells_backend_threads_and_extras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VERMILION_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    doctor()
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["threads"].startswith("3 ")
    assert told["smollm2-135m-diffusion"] == "not pulled"
    assert told["backend"].startswith("not known")
    assert "[eval]" in told and "[serve]" not in told


def test_it_tells_that_the_kernels_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VERMILION_HOME", str(tmp_path))
    monkeypatch.setattr(library, "LIBRARY_NAME", "_absent.so")
    library.load.cache_clear()
    try:
        doctor()
    finally:
        library.load.cache_clear()
    assert "models run on PyTorch" in capsys.readouterr().out
