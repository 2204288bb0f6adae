"""A conversation without a browser: recordings in, sound and words out, through the stages of any call."""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import uvicorn
from numpy.typing import NDArray

from vermilion.errors import BadParameter
from vermilion.speech.recognizer import SAMPLE_RATE
from vermilion.voice import simulated_caller
from vermilion.voice.call import Agent, CallRecord
from vermilion.voice.voice_app import create_voice_app

_SHORTEST_S = 0.1


@dataclass(frozen=True, slots=True)
class HeadlessCall:
    """What a headless call gave."""

    record: CallRecord
    waits_s: list[float]
    """Of each turn, by the caller's clock: last sample of speech to first sound of the answer."""
    samples: NDArray[np.int16]
    """All answers, one after another, the greeting first."""
    sample_rate: int


def read_speech(file: Path) -> NDArray[np.int16]:
    """A sound file as [num_samples] mono at 16 kHz. Raises BadParameter."""
    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise BadParameter("FILE", str(file), "a WAV, FLAC, OGG or MP3 file", str(error)) from None
    if len(samples) < rate * _SHORTEST_S:
        raise BadParameter(
            "FILE", f"{file}, {len(samples) / rate:.2f} s", f"at least {_SHORTEST_S} s of sound"
        )
    mono = soxr.resample(samples.mean(1), rate, SAMPLE_RATE)
    samples_int16: NDArray[np.int16] = (np.clip(mono, -1, 1) * 32767).astype(np.int16)
    return samples_int16


def write_speech(file: Path, samples: NDArray[np.int16], sample_rate: int) -> None:
    soundfile.write(file, samples, sample_rate)


def converse(agent: Agent, turns: list[NDArray[np.int16]]) -> HeadlessCall:
    """Speaks each of `turns` and waits for the end of its answer."""
    return asyncio.run(_converse(agent, turns))


async def _converse(agent: Agent, turns: list[NDArray[np.int16]]) -> HeadlessCall:
    app = create_voice_app(agent)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level=logging.WARNING))
    serving = asyncio.create_task(server.serve([listener]))
    waits, heard = [], []
    board = app.state.switchboard
    try:
        async with simulated_caller.call(f"ws://127.0.0.1:{listener.getsockname()[1]}/ws") as caller:
            if agent.persona.greeting:
                heard.append((await caller.answer(caller.began_at)).samples)
            for turn in turns:
                answer = await caller.answer(await caller.speak(turn))
                waits.append(answer.wait_s)
                heard.append(answer.samples)
        while board.running:
            await asyncio.sleep(0.05)
    finally:
        # Ended by hand: a server that is cancelled prints a stack trace over the error's line.
        server.should_exit = True
        await serving
    return HeadlessCall(board.finished[-1], waits, np.concatenate(heard), caller.sample_rate)
