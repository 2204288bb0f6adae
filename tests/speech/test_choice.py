"""Which recogniser and synthesiser a machine gets, and what it is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from vermilion.errors import BadParameter, ModelFileError
from vermilion.speech import recognizer, speech_models, synthesizer


@pytest.fixture(autouse=True)
def empty_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VERMILION_HOME", str(tmp_path))


def install(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in (recognizer, synthesizer):
        monkeypatch.setattr(module, "find_spec", lambda name: object() if name in modules else None)


def put(name: str) -> None:
    model = speech_models.SPEECH_MODELS[name]
    model.folder.mkdir(parents=True)
    for file in model.files:
        (model.folder / file.name).touch()


def test_the_best_weights_on_the_disk_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "faster_whisper", "pocketsphinx")
    put("whisper-tiny.en")
    assert recognizer.best_recognizer() == "tiny.en"
    put("whisper-base")
    assert recognizer.best_recognizer() == "base"


def test_without_weights_pocketsphinx_listens_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, "faster_whisper", "pocketsphinx")
    with caplog.at_level(logging.WARNING):
        assert recognizer.best_recognizer() == "pocketsphinx"
    assert "vermilion voice pull" in caplog.text


def test_without_a_voice_flite_speaks_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, "piper")
    monkeypatch.setattr(synthesizer.shutil, "which", lambda name: f"/usr/bin/{name}")
    with caplog.at_level(logging.WARNING):
        assert synthesizer.best_synthesizer() == "flite"
    assert "vermilion voice pull" in caplog.text
    put("piper-joe")
    assert synthesizer.best_synthesizer() == "piper"


def test_a_machine_without_anything_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.setattr(synthesizer.shutil, "which", lambda name: None)
    for find in (recognizer.find_recognizer, synthesizer.find_synthesizer):
        with pytest.raises(ModelFileError, match=r"pip install 'vermilion\[voice\]'"):
            find()


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(BadParameter, match=r"base, tiny\.en, pocketsphinx"):
        recognizer.find_recognizer("enormous")
    with pytest.raises(BadParameter, match="piper, flite, kokoro"):
        synthesizer.find_synthesizer("mouth")


def test_weights_that_are_not_here_are_named_with_the_command_that_fetches_them() -> None:
    with pytest.raises(
        ModelFileError, match=r"whisper-base is not on this machine\. Run: vermilion voice pull"
    ):
        recognizer.find_recognizer("base")
