"""Text to speech over HTTP, with OpenAI's own client."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import wave
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounts.conftest import until
from serving.audio.fake_speech import Hummer, ToneRecognizer, audio_client, audio_service, pitch
from vermilion.serving.audio.speech_routes import pieces
from vermilion.speech.audio_decoding import decode
from vermilion.speech.audio_encoding import MEDIA_TYPES
from vermilion.speech.recognizer import SAMPLE_RATE

pytest.importorskip("av")
pytestmark = pytest.mark.anyio
PATH = "/v1/audio/speech"
TEXT = "Hello there, you. How are things?"
SECONDS = 3.4
"""A letter takes the fake a tenth of a second; the space between the sentences is not spoken."""


@pytest.fixture
def hummer() -> Hummer:
    return Hummer()


@pytest.fixture
async def client(hummer: Hummer) -> AsyncIterator[httpx.AsyncClient]:
    async with audio_client(audio_service(ToneRecognizer(), hummer)) as client:
        yield client


@pytest.fixture
def sdk(client: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=client)


@pytest.mark.parametrize("format", list(MEDIA_TYPES))
async def test_every_format_has_the_whole_text_at_its_pitch(sdk: openai.AsyncOpenAI, format: Any) -> None:
    reply = await sdk.audio.speech.create(model="tts-1", voice="alloy", input=TEXT, response_format=format)
    assert reply.response.headers["content-type"] == MEDIA_TYPES[format]
    if format == "pcm":
        samples, rate_hz = np.frombuffer(reply.content, "<i2").astype(np.float32), 24_000
    else:
        samples, rate_hz = decode(io.BytesIO(reply.content), 60), SAMPLE_RATE
    # Lossy codecs put some silence around it.
    assert len(samples) / rate_hz == pytest.approx(SECONDS, abs=0.1)
    assert pitch(samples, rate_hz) == 440


async def test_without_a_format_it_is_mp3_and_sentences_are_spoken_one_by_one(
    sdk: openai.AsyncOpenAI, hummer: Hummer
) -> None:
    reply = await sdk.audio.speech.create(model="gpt-4o-mini-tts", voice="hummer", input=TEXT, speed=2)
    assert reply.response.headers["content-type"] == "audio/mpeg"
    assert hummer.said == [("Hello there, you.", 2.0), ("How are things?", 2.0)]
    assert len(decode(io.BytesIO(reply.content), 60)) / SAMPLE_RATE == pytest.approx(SECONDS / 2, abs=0.1)


async def test_a_wav_file_of_unknown_length_opens_in_pythons_own_module(sdk: openai.AsyncOpenAI) -> None:
    reply = await sdk.audio.speech.create(model="tts-1", voice="alloy", input="Hi.", response_format="wav")
    with wave.open(io.BytesIO(reply.content)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        assert len(file.readframes(file.getnframes())) == pytest.approx(0.4 * 48_000, abs=4)


async def test_events_carry_the_audio_and_what_it_cost(client: httpx.AsyncClient) -> None:
    body = {"input": TEXT, "response_format": "pcm", "stream_format": "sse"}
    reply = await client.post(PATH, json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in reply.text.split("\n\n") if line]
    sent = [base64.b64decode(event["audio"]) for event in events if event["type"] == "speech.audio.delta"]
    assert len(sent) >= 2 and sum(map(len, sent)) == pytest.approx(SECONDS * 48_000, abs=8)
    assert events[-1] == {
        "type": "speech.audio.done",
        "usage": {"input_tokens": len(TEXT), "output_tokens": 34, "total_tokens": len(TEXT) + 34},
    }


async def test_a_failure_in_the_middle_of_events_is_one_of_them(
    client: httpx.AsyncClient, hummer: Hummer
) -> None:
    hummer.fails_at = "things"
    reply = await client.post(PATH, json={"input": TEXT, "stream_format": "sse", "response_format": "pcm"})
    kinds = [json.loads(line.removeprefix("data: "))["type"] for line in reply.text.split("\n\n") if line]
    assert kinds == ["speech.audio.delta", "error"]
    hummer.fails_at = "Hello"
    refused = await client.post(PATH, json={"input": TEXT})
    assert refused.status_code == 500 and refused.json()["error"]["code"] == "engine_failure"


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"input": " \n"}, 400, "input", "letter"),
        ({"input": "a" * 4097}, 400, "input", "4096"),
        ({}, 400, "input", "required"),
        ({"input": "hi", "voice": "nobody"}, 400, "voice", "hummer, alloy"),
        ({"input": "hi", "voice": {"id": "voice_1"}}, 400, "voice", "hummer, alloy"),
        ({"input": "hi", "speed": 5}, 400, "speed", "less than or equal to 4"),
        ({"input": "hi", "response_format": "ogg"}, 400, "response_format", "mp3"),
        ({"input": "hi", "model": "tts-9"}, 404, "model", "tts-hummer"),
    ],
)
async def test_a_mistake_is_told_in_openais_shape(
    client: httpx.AsyncClient, fields: dict[str, Any], status: int, param: str, words: str
) -> None:
    reply = await client.post(PATH, json=fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, param), error
    assert words in error["message"]


async def test_the_voices_are_listed(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/audio/voices")).json() == {"voices": [{"id": "hummer", "name": "hummer"}]}


async def test_the_loop_goes_on_while_a_sentence_is_spoken(client: httpx.AsyncClient, hummer: Hummer) -> None:
    hummer.held = threading.Event()
    speaking = asyncio.create_task(client.post(PATH, json={"input": TEXT}))
    await until(lambda: hummer.said)
    assert (await client.get("/health")).status_code == 200
    hummer.held.set()
    assert (await speaking).status_code == 200


@given(st.text(max_size=2000))
def test_pieces_are_the_text(text: str) -> None:
    found = pieces(text)
    assert "".join(found) == text
    assert all(len(piece.strip()) <= 330 for piece in found)


def test_a_piece_is_a_sentence_or_a_part_of_a_long_one() -> None:
    assert pieces('He said "Stop." Then 3.5 km.\nEnd') == ['He said "Stop." ', "Then 3.5 km.\n", "End"]
    long = pieces("word " * 200)
    assert [len(piece) for piece in long] == [300, 300, 300, 100]
