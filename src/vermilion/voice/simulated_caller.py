"""A caller without a microphone: speaks recorded sound in real time over a WebSocket, and listens.

Sound goes out in frames of 20 ms, as a microphone gives it; what comes back is kept with its time of arrival,
so that the wait from the last sample of speech to the first of the answer is what a person would measure.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import websockets
from numpy.typing import NDArray
from pipecat.frames.protobufs import frames_pb2

from vermilion.errors import EngineFailure
from vermilion.speech.recognizer import SAMPLE_RATE

_FRAME_S = 0.02
_FRAME_SAMPLES = int(SAMPLE_RATE * _FRAME_S)
_LOUD = 200
"""Of 32,767: what is quieter is silence between words."""


@dataclass(slots=True)
class SpokenAnswer:
    """What came back after one turn."""

    wait_s: float
    """From the last sample of the caller's speech to the first loud one of the answer."""
    samples: NDArray[np.int16]
    sample_rate: int

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.sample_rate


@dataclass(slots=True)
class SimulatedCaller:
    """One open call; `call` opens one."""

    socket: websockets.ClientConnection
    began_at: float = field(default_factory=time.monotonic)
    sample_rate: int = 0
    """Of what is heard; known with the first sound."""
    interruptions: int = 0
    interrupted_at: float = 0.0
    """`time.monotonic()` when the last interruption reached the caller."""
    _heard: list[tuple[float, NDArray[np.int16]]] = field(default_factory=list)
    _outgoing: asyncio.Queue[NDArray[np.int16]] = field(default_factory=asyncio.Queue)
    _last_spoken_at: float = 0.0

    async def speak(self, samples: NDArray[np.int16]) -> float:
        """Say 16 kHz mono; returns `time.monotonic()` of its last loud sample, once that has been sent."""
        loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > _LOUD)
        speech = samples[: loud[-1] + 1] if len(loud) else samples
        padded = np.pad(speech, (0, -len(speech) % _FRAME_SAMPLES))
        for start in range(0, len(padded), _FRAME_SAMPLES):
            self._outgoing.put_nowait(padded[start : start + _FRAME_SAMPLES])
        while not self._outgoing.empty():
            await asyncio.sleep(_FRAME_S / 2)
        return time.monotonic()

    async def answer(self, spoken_at: float, timeout_s: float = 20.0, quiet_s: float = 1.5) -> SpokenAnswer:
        """Waits for sound after `spoken_at`, then for `quiet_s` without. Raises EngineFailure for silence."""
        deadline = spoken_at + timeout_s
        while not (sounds := self.heard_since(spoken_at)):
            if time.monotonic() > deadline:
                raise EngineFailure(f"No answer was heard within {timeout_s:.0f} s.")
            await asyncio.sleep(0.01)
        first_at = sounds[0][0]
        while time.monotonic() - self.heard_since(spoken_at)[-1][0] < quiet_s:
            await asyncio.sleep(0.05)
        samples = np.concatenate([piece for at, piece in self._heard if at >= first_at])
        return SpokenAnswer(first_at - spoken_at, samples, self.sample_rate)

    def heard_since(self, moment: float) -> list[tuple[float, NDArray[np.int16]]]:
        """The loud pieces that arrived after `moment`."""
        return [
            (at, piece) for at, piece in self._heard if at > moment and np.abs(piece).max(initial=0) > _LOUD
        ]

    async def _send(self) -> None:
        silence, due = np.zeros(_FRAME_SAMPLES, np.int16), time.monotonic()
        while True:
            try:
                samples = self._outgoing.get_nowait()
            except asyncio.QueueEmpty:
                samples = silence
            audio = frames_pb2.AudioRawFrame(audio=samples.tobytes(), sample_rate=SAMPLE_RATE, num_channels=1)
            await self.socket.send(frames_pb2.Frame(audio=audio).SerializeToString())
            due += _FRAME_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _listen(self) -> None:
        async for message in self.socket:
            frame = frames_pb2.Frame.FromString(message if isinstance(message, bytes) else message.encode())
            kind = frame.WhichOneof("frame")
            if kind == "audio":
                self.sample_rate = frame.audio.sample_rate
                self._heard.append((time.monotonic(), np.frombuffer(frame.audio.audio, np.int16)))
            elif kind == "interruption":
                self.interruptions += 1
                self.interrupted_at = time.monotonic()

    def forget(self) -> None:
        """Drop what was heard so far."""
        self._heard.clear()


@asynccontextmanager
async def call(url: str) -> AsyncIterator[SimulatedCaller]:
    """A call to the voice process at `url` (ws://.../ws); hangs up in the end."""
    async with websockets.connect(url, max_size=None) as socket:
        caller = SimulatedCaller(socket)
        tasks = [asyncio.create_task(caller._send()), asyncio.create_task(caller._listen())]
        try:
            yield caller
        finally:
            for task in tasks:
                task.cancel()
            with contextlib.suppress(websockets.ConnectionClosed):
                await asyncio.gather(*tasks, return_exceptions=True)
