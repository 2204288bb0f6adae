"""Transcribing begins at a pause, and the text is that of the whole stretch all the same."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
from pipecat.audio.vad.vad_analyzer import VADState
from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

from vermilion.errors import EngineFailure
from vermilion.serving.audio.speech_threads import SpeechThread
from vermilion.speech.recognizer import SAMPLE_RATE, Transcript
from vermilion.voice.pause_detector import PauseDetector
from vermilion.voice.speech_services import RecognizerService

pytestmark = pytest.mark.voice

FRAME_SAMPLES = SAMPLE_RATE // 50
SILENCE = [0] * 5
"""Frames of 20 ms until a pause is told; ten until the detector says that the caller stopped."""


@dataclass
class CountingEar:
    """Says which numbers are in the samples; the first calls may fail, or wait for `held`."""

    name: str = "counting"
    multilingual: bool = False
    calls: list[str] = field(default_factory=list)
    failures: int = 0
    held: threading.Event | None = None

    def transcribe(self, samples: np.ndarray, **asked: object) -> Transcript:
        text = " ".join(str(number) for number in dict.fromkeys(samples.tolist()) if number)
        self.calls.append(text)
        if self.failures:
            self.failures -= 1
            raise EngineFailure("deaf")
        if self.held is not None:
            self.held.wait(20)
        return Transcript(text, (), 0.0, "en", len(samples) / SAMPLE_RATE)


class Collector(FrameProcessor):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[tuple[str, bool]] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TranscriptionFrame):
            self.texts.append((frame.text, frame.finalized))
        await self.push_frame(frame, direction)


class Listener:
    """The recogniser's stage in a pipeline, told what a voice detector would tell."""

    def __init__(self, ear: CountingEar) -> None:
        self.ear, self.collector = ear, Collector()
        self.stage = RecognizerService(ear, SpeechThread(lambda: ear))
        params = PipelineParams(audio_in_sample_rate=SAMPLE_RATE)
        self.worker = PipelineWorker(Pipeline([self.stage, self.collector]), params=params, enable_rtvi=False)

    async def hear(self, numbers: list[int]) -> None:
        """A frame of 20 ms of each."""
        for number in numbers:
            sound = np.full(FRAME_SAMPLES, number, np.int16).tobytes()
            await self.worker.queue_frame(InputAudioRawFrame(sound, SAMPLE_RATE, 1))
        await self.settled()

    async def started(self) -> None:
        await self.worker.queue_frame(VADUserStartedSpeakingFrame())
        await self.settled()

    async def stopped(self) -> None:
        await self.worker.queue_frame(VADUserStoppedSpeakingFrame())
        await self.settled()

    async def settled(self) -> None:
        await asyncio.sleep(0.1)


async def listened(ear: CountingEar, script: object) -> list[tuple[str, bool]]:
    listener = Listener(ear)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(listener.worker)
    running = asyncio.create_task(runner.run())
    await listener.settled()
    await script(listener)  # type: ignore[operator]
    await listener.worker.cancel()
    await running
    return listener.collector.texts


def test_a_pause_that_ends_the_stretch_is_transcribed_once_and_before_the_detector_is_sure() -> None:
    ear = CountingEar()

    async def script(listener: Listener) -> None:
        await listener.started()
        await listener.hear([1, 2, 3, *SILENCE])
        listener.stage.begin_early()
        await listener.hear(SILENCE)
        assert ear.calls == ["1 2 3"] and listener.collector.texts == []
        await listener.stopped()

    assert asyncio.run(listened(ear, script)) == [("1 2 3", True)]
    assert ear.calls == ["1 2 3"]


def test_where_speech_goes_on_the_text_is_that_of_the_whole() -> None:
    ear = CountingEar()

    async def script(listener: Listener) -> None:
        await listener.started()
        await listener.hear([1, 2, 3, *SILENCE])
        listener.stage.begin_early()
        await listener.hear([4, *SILENCE, *SILENCE])
        await listener.stopped()

    assert asyncio.run(listened(ear, script)) == [("1 2 3 4", True)]
    assert ear.calls == ["1 2 3", "1 2 3 4"]


def test_the_last_of_several_pauses_counts_though_an_earlier_one_is_still_transcribed() -> None:
    ear = CountingEar(held=threading.Event())

    async def script(listener: Listener) -> None:
        await listener.started()
        await listener.hear([1, *SILENCE])
        listener.stage.begin_early()
        await listener.hear([2, *SILENCE])
        listener.stage.begin_early()
        await listener.hear(SILENCE)
        await listener.stopped()
        assert ear.held is not None
        ear.held.set()
        await listener.settled()

    assert asyncio.run(listened(ear, script)) == [("1 2", True)]
    assert ear.calls == ["1", "1 2"]


def test_what_a_pause_began_is_not_given_to_the_next_stretch() -> None:
    async def script(listener: Listener) -> None:
        await listener.started()
        await listener.hear([1, *SILENCE])
        listener.stage.begin_early()
        await listener.hear(SILENCE)
        await listener.stopped()
        await listener.hear([0] * 20)
        await listener.started()
        await listener.hear([2, *SILENCE, *SILENCE])
        await listener.stopped()

    assert asyncio.run(listened(CountingEar(), script)) == [("1", True), ("2", True)]


def test_a_word_that_begins_before_the_detector_says_stop_is_whole_in_the_next_stretch() -> None:
    async def script(listener: Listener) -> None:
        await listener.started()
        await listener.hear([1, *SILENCE])
        listener.stage.begin_early()
        await listener.hear([*SILENCE, 2])
        await listener.stopped()
        await listener.started()
        await listener.hear([3, *SILENCE, *SILENCE])
        await listener.stopped()

    assert asyncio.run(listened(CountingEar(), script)) == [("1", True), ("2 3", True)]


def test_a_failure_that_was_thrown_away_is_none() -> None:
    async def script(listener: Listener) -> None:
        await listener.started()
        await listener.hear([1, *SILENCE])
        listener.stage.begin_early()
        await listener.hear([2, *SILENCE, *SILENCE])
        await listener.stopped()

    assert asyncio.run(listened(CountingEar(failures=1), script)) == [("1 2", True)]


def test_the_detector_tells_of_a_pause_once_after_100_ms_and_before_it_is_sure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def confidence(detector: PauseDetector, sound: bytes) -> float:
        return float(np.abs(np.frombuffer(sound, np.int16)).max() > 1000)

    async def main() -> None:
        told: list[str] = []
        detector = PauseDetector(lambda: told.append("pause"))
        detector.set_sample_rate(SAMPLE_RATE)
        noise = np.random.default_rng(0).integers(-30000, 30000, SAMPLE_RATE).astype(np.int16)

        async def hear(sound: np.ndarray) -> VADState:
            for start in range(0, len(sound), FRAME_SAMPLES):
                state = await detector.analyze_audio(sound[start : start + FRAME_SAMPLES].tobytes())
            return state

        silence = np.zeros(SAMPLE_RATE, np.int16)
        assert await hear(silence) is VADState.QUIET
        assert await hear(noise) is VADState.SPEAKING
        await hear(silence[: SAMPLE_RATE * 8 // 100])
        assert await hear(noise) is VADState.SPEAKING and told == [], "80 ms are within a word"
        assert await hear(silence[: SAMPLE_RATE * 16 // 100]) is VADState.STOPPING
        assert told == ["pause"]
        assert await hear(silence) is VADState.QUIET and told == ["pause"]
        await hear(noise)
        await hear(silence)
        assert told == ["pause", "pause"]
        await detector.cleanup()

    monkeypatch.setattr(PauseDetector, "voice_confidence", confidence)
    asyncio.run(main())
