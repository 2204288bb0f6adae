"""What calls have in common is loaded once and works on a thread each, and they leave no memory behind."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

import numpy as np
import psutil
import pytest
from pipecat.audio.turn.smart_turn.base_smart_turn import SmartTurnParams
from pipecat.audio.turn.smart_turn.local_smart_turn_v3 import LocalSmartTurnAnalyzerV3
from pipecat.audio.vad.silero import SileroVADAnalyzer

from tests.voice.scripted_model import ScriptedModel
from tests.voice.speaking import listening, mouth, speech, until
from vermilion.speech.recognizer import SAMPLE_RATE, Transcript
from vermilion.voice import simulated_caller
from vermilion.voice.call import Agent
from vermilion.voice.pause_detector import PauseDetector
from vermilion.voice.persona import Persona
from vermilion.voice.turn_detector import TurnDetector
from vermilion.voice.voice_app import create_voice_app

pytestmark = pytest.mark.voice

WINDOW = 512
LONG = " ".join(["a small brown dog lives near the quiet river"] * 3) + "."


@dataclass
class QuickEar:
    """Hears the same question in everything, at once."""

    name: str = "quick"
    multilingual: bool = False
    threads: set[int] = field(default_factory=set)

    def transcribe(self, samples: np.ndarray, **asked: object) -> Transcript:
        self.threads.add(threading.get_ident())
        return Transcript("Where does it live?", (), 0.0, "en", len(samples) / SAMPLE_RATE)


@dataclass
class WatchedMouth:
    """Piper, and the threads that it spoke on."""

    name: str = "piper"
    sample_rate: int = 22_050
    threads: set[int] = field(default_factory=set)

    def speak(self, text: str, speed: float = 1.0):  # type: ignore[no-untyped-def]
        for piece in mouth().speak(text, speed):
            self.threads.add(threading.get_ident())
            yield piece


def resident_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


def test_calls_at_once_share_two_threads_and_leave_no_memory() -> None:
    async def calls(port: int, number: int) -> None:
        async def one() -> None:
            async with simulated_caller.call(f"ws://127.0.0.1:{port}/ws") as caller:
                said_at = await caller.speak(speech("Where does the dog live?"))
                await caller.answer(said_at, timeout_s=90.0, quiet_s=0.1)

        await asyncio.gather(*(one() for _ in range(number)))

    async def main() -> tuple[float, float]:
        model = ScriptedModel([LONG])
        async with listening(model.app) as model_port:
            ear, voice = QuickEar(), WatchedMouth()
            agent = Agent(ear, voice, Persona(greeting=""), f"http://127.0.0.1:{model_port}/v1", "scripted")
            voice.threads.clear()
            app = create_voice_app(agent)
            async with listening(app) as port:
                await calls(port, 1)
                first_mb = resident_mb()
                for _ in range(2):
                    await calls(port, 4)
                board = app.state.switchboard
                await until(lambda: not board.running)
                assert len(ear.threads) == len(voice.threads) == 1
                return first_mb, resident_mb()

    before_mb, after_mb = asyncio.run(main())
    assert after_mb - before_mb < 150


def test_a_voice_gives_back_what_a_long_sentence_took() -> None:
    list(mouth().speak("Yes."))
    before_mb = resident_mb()
    list(mouth().speak(LONG))
    list(mouth().speak("Yes."))
    assert resident_mb() - before_mb < 120


def test_the_shared_model_hears_the_end_of_a_turn_as_a_detector_of_its_own_does() -> None:
    shared, own = TurnDetector(SmartTurnParams()), LocalSmartTurnAnalyzerV3(params=SmartTurnParams())
    assert shared._session is TurnDetector(SmartTurnParams())._session
    for end in (8_000, 16_000, None):
        heard = speech("What is the capital of France?")[:end].astype(np.float32) / 32768
        assert shared._predict_endpoint(heard) == own._predict_endpoint(heard)


def test_detectors_on_the_shared_model_hear_only_their_own_call() -> None:
    detectors = [PauseDetector(lambda: None), PauseDetector(lambda: None), SileroVADAnalyzer()]
    one, other, own = detectors
    for detector in detectors:
        detector.set_sample_rate(SAMPLE_RATE)
    assert one._model.session is other._model.session
    noise = np.random.default_rng(0).integers(-9000, 9000, WINDOW).astype(np.int16)
    sound = speech("What is the capital of France?")
    for start in range(0, len(sound) - WINDOW, WINDOW):
        window = sound[start : start + WINDOW].tobytes()
        other.voice_confidence(noise.tobytes())
        assert one.voice_confidence(window) == own.voice_confidence(window)
