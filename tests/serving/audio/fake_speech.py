"""Speech of tones: a synthesizer that hums, and a recognizer that says which tone each second has."""

from __future__ import annotations

import io
import threading
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import numpy as np
from numpy.typing import NDArray

from serving.fake import FakeBackend, served
from vermilion.accounts.gate import Accounts
from vermilion.errors import EngineFailure
from vermilion.serving.audio.speech_threads import SpeechModels
from vermilion.serving.http.app import create_app
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.service_state import ServiceState
from vermilion.speech.recognizer import SAMPLE_RATE, SpokenSegment, SpokenWord, Transcript


def tone(hertz: int, seconds: float, rate_hz: int) -> NDArray[np.int16]:
    times_S = np.arange(int(seconds * rate_hz)) / rate_hz
    return (8000 * np.sin(2 * np.pi * hertz * times_S)).astype(np.int16)


def wav(samples_S: NDArray[np.int16], rate_hz: int = SAMPLE_RATE) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate_hz)
        writer.writeframes(samples_S.tobytes())
    return file.getvalue()


def pitch(samples_S: NDArray[np.float32], rate_hz: int) -> int:
    """The loudest frequency, to ten hertz."""
    spectrum = np.abs(np.fft.rfft(samples_S))
    return round(int(spectrum.argmax()) * rate_hz / len(samples_S) / 10) * 10


@dataclass
class ToneRecognizer:
    name: str = "tones"
    multilingual: bool = True
    asked: list[dict[str, object]] = field(default_factory=list)
    held: threading.Event | None = None
    """What every piece but the first waits for."""

    def transcribe(self, samples: NDArray[np.float32], **asked: object) -> Transcript:
        self.asked.append({**asked, "num_samples": len(samples)})
        if len(self.asked) > 1 and self.held is not None:
            self.held.wait(20)
        found = []
        for start in range(0, len(samples), SAMPLE_RATE):
            part = samples[start : start + SAMPLE_RATE]
            start_s, end_s = start / SAMPLE_RATE, (start + len(part)) / SAMPLE_RATE
            text = f"{pitch(part, SAMPLE_RATE)} hertz."
            word = SpokenWord(text.split(maxsplit=1)[0], start_s, end_s, 0.9)
            spoken = (word,) if asked["detail"] == "words" else ()
            found.append(SpokenSegment(text, start_s, end_s, 0.01, -0.25, spoken))
        text = " ".join(segment.text for segment in found)
        language = str(asked["language"] or "en")
        return Transcript(text, tuple(found), 0.01, language, len(samples) / SAMPLE_RATE)


@dataclass
class Hummer:
    """A tenth of a second a letter, a piece a word."""

    name: str = "hummer"
    sample_rate: int = 22_050
    said: list[tuple[str, float]] = field(default_factory=list)
    held: threading.Event | None = None
    """What every sentence but the first waits for."""
    fails_at: str = ""

    def speak(self, text: str, speed: float = 1.0) -> Iterator[NDArray[np.int16]]:
        if self.said and self.held is not None:
            self.held.wait(20)
        if self.fails_at and self.fails_at in text:
            raise EngineFailure("hoarse")
        self.said.append((text, speed))
        for word in text.split(" "):
            yield tone(440, (len(word) + 1) / 10 / speed, self.sample_rate)


def audio_service(
    recognizer: ToneRecognizer, synthesizer: Hummer, accounts: Accounts | None = None, **settings: object
) -> ServiceState:
    speech = SpeechModels(lambda: recognizer, lambda: synthesizer)
    return ServiceState(ServeConfig(**settings), served(FakeBackend()), accounts, speech)  # type: ignore[arg-type]


@asynccontextmanager
async def audio_client(service: ServiceState) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client
