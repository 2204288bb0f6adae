"""An agent on LiveKit Agents whose ears, answers and voice are Vermilion's, without a room.

livekit_agent.py http://127.0.0.1:8000/v1 MODEL question.wav answer.wav
"""

from __future__ import annotations

import asyncio
import sys
import time
import wave

from livekit import rtc
from livekit.agents import Agent, AgentSession, io
from livekit.plugins import openai, silero

_FRAME_S = 0.02


def session(base_url: str, model: str) -> AgentSession:
    """What docs/VOICE.md shows."""
    place = {"base_url": base_url, "api_key": "unused"}
    return AgentSession(
        vad=silero.VAD.load(),
        turn_detection="vad",
        stt=openai.STT(model="whisper-1", **place),
        llm=openai.LLM(model=model, extra_body={"realtime": True}, **place),
        tts=openai.TTS(model="tts-1", voice="alloy", response_format="pcm", **place),
    )


class Recording(io.AudioInput):
    """A WAV file in real time, then silence."""

    def __init__(self, path: str) -> None:
        super().__init__(label="recording")
        with wave.open(path) as file:
            self._rate, self._left = file.getframerate(), file.readframes(file.getnframes())
        self._due_s = time.monotonic()

    async def __anext__(self) -> rtc.AudioFrame:
        self._due_s += _FRAME_S
        await asyncio.sleep(max(0.0, self._due_s - time.monotonic()))
        samples = int(self._rate * _FRAME_S)
        piece, self._left = self._left[: 2 * samples], self._left[2 * samples :]
        return rtc.AudioFrame(piece.ljust(2 * samples, b"\0"), self._rate, 1, samples)


class Kept(io.AudioOutput):
    """What the agent says; played at once."""

    def __init__(self) -> None:
        super().__init__(label="kept", capabilities=io.AudioOutputCapabilities(pause=False))
        self.frames: list[rtc.AudioFrame] = []
        self.said = asyncio.Event()
        self._length_s = 0.0

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        self.frames.append(frame)
        self._length_s += frame.duration

    def flush(self) -> None:
        super().flush()
        if self._length_s:
            self.on_playback_finished(playback_position=self._length_s, interrupted=False)
            self._length_s = 0.0
            self.said.set()

    def clear_buffer(self) -> None:
        self._length_s = 0.0


async def main(base_url: str, model: str, question: str, answer: str) -> None:
    talking, kept = session(base_url, model), Kept()
    talking.on("user_input_transcribed", lambda event: event.is_final and print("user:", event.transcript))
    talking.input.audio, talking.output.audio = Recording(question), kept
    await talking.start(Agent(instructions="Answer in one short sentence."))
    await asyncio.wait_for(kept.said.wait(), 120)
    await talking.aclose()
    with wave.open(answer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(kept.frames[0].sample_rate)
        file.writeframes(b"".join(bytes(frame.data) for frame in kept.frames))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
