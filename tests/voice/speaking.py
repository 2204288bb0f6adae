"""What the tests of calls share: speech, an agent, and the voice process on a loopback socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import numpy as np
import soxr
import uvicorn
from fastapi import FastAPI
from numpy.typing import NDArray

from vermilion.speech.recognizer import SAMPLE_RATE, Recognizer, find_recognizer
from vermilion.speech.synthesizer import Synthesizer, find_synthesizer


@cache
def ear() -> Recognizer:
    return find_recognizer("base")


@cache
def mouth() -> Synthesizer:
    return find_synthesizer("piper")


@cache
def speech(text: str) -> NDArray[np.int16]:
    """Said by Piper, at 16 kHz."""
    samples = np.concatenate(list(mouth().speak(text)))
    return soxr.resample(samples, mouth().sample_rate, SAMPLE_RATE)


def heard(samples: NDArray[np.int16], sample_rate: int) -> str:
    """What a recogniser makes of sound that was played, in lower case."""
    return ear().transcribe(soxr.resample(samples, sample_rate, SAMPLE_RATE)).text.lower()


@asynccontextmanager
async def listening(app: FastAPI) -> AsyncIterator[int]:
    """Serves `app` on a free port of this machine; gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        task = asyncio.create_task(server.serve([listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await asyncio.wait_for(task, 20)


async def until(condition: Any, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
