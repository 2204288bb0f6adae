"""The routes of speech on the real models: what one says the other hears."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator
from importlib.util import find_spec
from itertools import pairwise

import httpx
import numpy as np
import openai
import pytest

from serving.audio.fake_speech import audio_client, wav
from serving.fake import FakeBackend, served
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.service_state import ServiceState
from vermilion.speech import speech_models
from vermilion.speech.audio_decoding import decode
from vermilion.speech.recognizer import SAMPLE_RATE

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.voice,
    pytest.mark.skipif(
        find_spec("piper") is None or not all(map(speech_models.is_pulled, ("whisper-base", "piper-joe"))),
        reason="run: vermilion voice pull",
    ),
]
SENTENCES = (
    "The train to the coast leaves at noon.",
    "My sister keeps three grey horses behind the house.",
    "Please bring bread, butter and a bottle of milk.",
    "The weather will be cold and dry until Sunday.",
)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def error_rate(said: str, heard: str) -> float:
    """Edits a word."""
    wanted, found = words(said), words(heard)
    row = list(range(len(found) + 1))
    for number, word in enumerate(wanted, 1):
        last, row[0] = row[0], number
        for place, other in enumerate(found, 1):
            last, row[place] = row[place], min(last + (word != other), row[place] + 1, row[place - 1] + 1)
    return row[-1] / len(wanted)


@pytest.fixture(scope="module")
def service() -> ServiceState:
    return ServiceState(ServeConfig(), served(FakeBackend()))


@pytest.fixture
async def client(service: ServiceState) -> AsyncIterator[httpx.AsyncClient]:
    async with audio_client(service) as client:
        client.timeout = httpx.Timeout(300)
        yield client


@pytest.fixture
def sdk(client: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=client)


@pytest.mark.parametrize("format", ["mp3", "opus"])
async def test_what_is_spoken_is_heard(sdk: openai.AsyncOpenAI, format: str) -> None:
    said = " ".join(SENTENCES)
    spoken = await sdk.audio.speech.create(
        model="tts-1",
        voice="alloy",
        input=said,
        response_format=format,  # type: ignore[arg-type]
    )
    reply = await sdk.audio.transcriptions.create(
        model="whisper-1",
        file=(f"a.{format}", spoken.content),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert reply.language == "english"
    assert error_rate(said, reply.text) <= 0.1, reply.text
    assert reply.words is not None and reply.segments is not None
    assert error_rate(said, " ".join(word.word for word in reply.words)) <= 0.1
    assert all(one.start <= after.start for one, after in pairwise(reply.words))
    assert 0 < reply.segments[-1].end <= reply.duration + 0.5


async def test_a_long_recording_loses_nothing_at_its_cuts(sdk: openai.AsyncOpenAI) -> None:
    said = " ".join(SENTENCES * 4)
    spoken = await sdk.audio.speech.create(model="tts-1", voice="alloy", input=said, response_format="wav")
    samples = decode(io.BytesIO(spoken.content), 600)
    assert len(samples) > 40 * SAMPLE_RATE
    stream = await sdk.audio.transcriptions.create(
        model="whisper-1",
        file=("a.wav", wav((samples * 32767).astype(np.int16))),
        language="en",
        stream=True,
    )
    events = [event async for event in stream]
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) >= 2
    assert error_rate(said, "".join(deltas)) <= 0.1, deltas


async def test_double_speed_takes_half_the_time_and_is_still_heard(sdk: openai.AsyncOpenAI) -> None:
    usual, quick = await asyncio.gather(
        *(
            sdk.audio.speech.create(model="tts-1", voice="alloy", input=SENTENCES[0], speed=speed)
            for speed in (1.0, 1.5)
        )
    )
    lengths = [len(decode(io.BytesIO(one.content), 60)) for one in (usual, quick)]
    assert 1.2 < lengths[0] / lengths[1] < 1.8
    heard = await sdk.audio.transcriptions.create(
        model="whisper-1", file=("a.mp3", quick.content), language="en"
    )
    assert error_rate(SENTENCES[0], heard.text) <= 0.25, heard.text
