"""The command without the extra, and the choice of weights."""

from __future__ import annotations

import pytest

from tests.cli.scripted import vermilion
from vermilion.cli import talk


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
    assert talk._weights("pocketsphinx", None) == [("piper-joe", False)]
