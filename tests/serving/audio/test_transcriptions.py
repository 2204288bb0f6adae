"""Speech to text over HTTP, with OpenAI's own client where there is one for it."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from accounts.conftest import until
from serving.audio.fake_speech import Hummer, ToneRecognizer, audio_client, audio_service, tone, wav
from vermilion.errors import ModelFileError
from vermilion.serving.audio.recognition import cut
from vermilion.serving.audio.speech_threads import SpeechModels, SpeechThread
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.service_state import ServiceState
from vermilion.speech.audio_encoding import MEDIA_TYPES, AudioEncoder
from vermilion.speech.recognizer import SAMPLE_RATE

av = pytest.importorskip("av")
pytestmark = pytest.mark.anyio
PATH = "/v1/audio/transcriptions"
SPEECH = np.concatenate([tone(440, 1, SAMPLE_RATE), tone(660, 0.95, SAMPLE_RATE)])
TEXT = "440 hertz. 660 hertz."


@pytest.fixture
def recognizer() -> ToneRecognizer:
    return ToneRecognizer()


@pytest.fixture
async def client(recognizer: ToneRecognizer) -> AsyncIterator[httpx.AsyncClient]:
    async with audio_client(audio_service(recognizer, Hummer(), max_audio_s=10)) as client:
        yield client


@pytest.fixture
def sdk(client: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=client)


def speech_in(format: str) -> bytes:
    encoder = AudioEncoder(format, SAMPLE_RATE)
    return encoder.encode(SPEECH) + encoder.finish()


async def test_the_sdk_reads_text_and_usage(sdk: openai.AsyncOpenAI, recognizer: ToneRecognizer) -> None:
    reply = await sdk.audio.transcriptions.create(
        model="whisper-1", file=("a.wav", wav(SPEECH)), language="de", prompt="Sounds.", temperature=0.2
    )
    assert reply.text == TEXT
    # 1.95 s are 19.5 tenths, of which the last has begun.
    assert reply.usage is not None and reply.usage.type == "tokens" and reply.usage.input_tokens == 20
    asked = recognizer.asked[0]
    assert asked == {"detail": "text", "language": "de", "prompt": "Sounds.", "num_samples": len(SPEECH)}


@pytest.mark.parametrize("format", [format for format in MEDIA_TYPES if format != "pcm"])
async def test_every_format_that_speech_is_made_in_is_heard(client: httpx.AsyncClient, format: str) -> None:
    # The name and type that a client gives are not believed.
    reply = await client.post(PATH, files={"file": ("upload", speech_in(format), "text/plain")})
    assert reply.json()["text"].startswith(TEXT)


@pytest.mark.parametrize("container", ["mp4", "webm", "matroska"])
async def test_recordings_of_browsers_and_phones_are_heard(client: httpx.AsyncClient, container: str) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as writer:
        stream = writer.add_stream("aac" if container == "mp4" else "libopus", rate=48_000, layout="stereo")
        resampler = av.AudioResampler(stream.format.name, "stereo", 48_000, stream.frame_size or 960)
        frame = av.AudioFrame.from_ndarray(SPEECH[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for given in (frame, None):
            for part in resampler.resample(given):
                writer.mux(stream.encode(part))
        writer.mux(stream.encode(None))
    reply = await client.post(PATH, files={"file": ("upload", file.getvalue())})
    assert reply.json()["text"].startswith(TEXT), reply.text


async def test_verbose_json_has_segments_and_words_where_asked(sdk: openai.AsyncOpenAI) -> None:
    reply = await sdk.audio.transcriptions.create(
        model="whisper-1",
        file=("a.wav", wav(SPEECH)),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert (reply.text, reply.language, round(reply.duration, 2)) == (TEXT, "english", 1.95)
    assert reply.segments is not None and reply.words is not None
    assert [(one.id, one.start, one.end, one.text) for one in reply.segments] == [
        (0, 0.0, 1.0, "440 hertz."),
        (1, 1.0, 1.95, "660 hertz."),
    ]
    assert [(word.word, word.start) for word in reply.words] == [("440", 0.0), ("660", 1.0)]
    assert reply.usage is not None and reply.usage.seconds == 2.0
    plain = await sdk.audio.transcriptions.create(
        model="whisper-1", file=("a.wav", wav(SPEECH)), response_format="verbose_json"
    )
    assert plain.segments and plain.words is None


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("text", f"{TEXT}\n"),
        (
            "srt",
            "1\n00:00:00,000 --> 00:00:01,000\n440 hertz.\n\n"
            "2\n00:00:01,000 --> 00:00:01,950\n660 hertz.\n\n",
        ),
        (
            "vtt",
            "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n440 hertz.\n\n"
            "00:00:01.000 --> 00:00:01.950\n660 hertz.\n\n",
        ),
    ],
)
async def test_plain_formats_are_what_players_read(
    sdk: openai.AsyncOpenAI, format: Any, content: str
) -> None:
    reply = await sdk.audio.transcriptions.create(
        model="whisper-1", file=("a.wav", wav(SPEECH)), response_format=format
    )
    assert reply == content


def recording(num_pieces: int) -> NDArray[np.int16]:
    """19 s of tones and 1 s of silence, again and again: a cut belongs into the silence."""
    part = np.concatenate([tone(440, 19, SAMPLE_RATE), tone(440, 1, SAMPLE_RATE) // 1000])
    return np.concatenate([part] * num_pieces)


async def test_a_long_recording_is_streamed_in_pieces_cut_where_it_is_quiet(
    recognizer: ToneRecognizer,
) -> None:
    async with audio_client(audio_service(recognizer, Hummer())) as client:
        sdk = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=client)
        stream = await sdk.audio.transcriptions.create(
            model="gpt-4o-mini-transcribe", file=("a.wav", wav(recording(3))), stream=True, prompt="Sounds."
        )
        events = [event async for event in stream]
        whole = await sdk.audio.transcriptions.create(
            model="whisper-1", file=("a.wav", wav(recording(3))), response_format="verbose_json"
        )
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    done = events[-1]
    assert done.type == "transcript.text.done" and done.text == "".join(deltas)
    assert done.usage is not None and done.usage.total_tokens == 600
    ends_s = (
        np.cumsum([int(str(one["num_samples"])) for one in recognizer.asked[: len(deltas)]]) / SAMPLE_RATE
    )
    assert len(deltas) == 3 and ends_s[-1] == 60
    assert all(19 < end_s % 20 < 20 for end_s in ends_s[:-1])
    assert [one["prompt"] for one in recognizer.asked[:3]] == ["Sounds.", "", ""]
    # Times count from the beginning of the recording.
    assert whole.segments is not None
    assert all(one.end <= after.start for one, after in pairwise(whole.segments))
    assert whole.segments[-1].end == pytest.approx(60)


@given(st.integers(0, 100 * SAMPLE_RATE), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_pieces_are_the_recording_and_never_too_long(num_samples: int, seed: int) -> None:
    samples_S = np.random.default_rng(seed).standard_normal(num_samples, np.float32)
    pieces = list(cut(samples_S))
    assert np.array_equal(np.concatenate(pieces), samples_S)
    assert all(len(piece) <= 28 * SAMPLE_RATE for piece in pieces)
    assert all(len(piece) >= 12 * SAMPLE_RATE for piece in pieces[:-1])


@pytest.mark.parametrize(
    ("fields", "content", "status", "param", "words"),
    [
        ({}, b"#EXTM3U\nfile:///etc/passwd\n", 400, "file", "none of the known formats"),
        ({}, b"RIFF\x10\x00\x00\x00WAVEfmt nonsense", 400, "file", "cannot be read as wav"),
        ({}, b"ID3\x04" + bytes(500), 400, "file", "mp3"),
        ({}, wav(SPEECH[:0]), 400, "file", "no sound"),
        ({}, b"", 400, "file", "empty"),
        ({}, wav(tone(440, 11, SAMPLE_RATE)), 413, "file", "longer than 10 s"),
        ({"response_format": "diarized_json"}, wav(SPEECH), 400, "response_format", "verbose_json"),
        ({"timestamp_granularities[]": "word"}, wav(SPEECH), 400, "response_format", "verbose_json"),
        ({"language": "tlh"}, wav(SPEECH), 400, "language", "en, es"),
        ({"temperature": "hot"}, wav(SPEECH), 400, "temperature", "0 to 1"),
        ({"stream": "true", "response_format": "srt"}, wav(SPEECH), 400, "response_format", "json or text"),
        ({"stream": "perhaps"}, wav(SPEECH), 400, "stream", "true or false"),
        ({"include[]": "logprobs"}, wav(SPEECH), 400, "include", "avg_logprob"),
        ({"model": "gpt-4o-transcribe-diarize"}, wav(SPEECH), 404, "model", "stt-tones"),
    ],
)
async def test_a_mistake_is_told_in_openais_shape(
    client: httpx.AsyncClient, fields: dict[str, str], content: bytes, status: int, param: str, words: str
) -> None:
    reply = await client.post(PATH, files={"file": ("a.wav", content)}, data=fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, param), error
    assert words in error["message"]


async def test_a_form_without_a_file_and_one_too_large_are_refused(recognizer: ToneRecognizer) -> None:
    async with audio_client(audio_service(recognizer, Hummer(), max_audio_bytes=1000)) as client:
        missing = await client.post(PATH, data={"model": "whisper-1"}, files={"other": b"x"})
        assert missing.json()["error"]["code"] == "missing_required_parameter"
        large = await client.post(PATH, files={"file": ("a.wav", bytes(100_000))})
        assert large.status_code == 413


async def test_a_recording_cut_short_is_heard_as_far_as_it_goes(client: httpx.AsyncClient) -> None:
    reply = await client.post(PATH, files={"file": ("a.wav", wav(SPEECH)[:-20_000])})
    assert reply.json()["text"].startswith("440 hertz.")


async def test_without_the_extra_the_reply_says_what_to_install() -> None:
    def none() -> Any:
        raise ModelFileError("Nothing here can hear. Run: pip install 'vermilion[voice]'")

    service = ServiceState(ServeConfig(), speech=SpeechModels(none, none))
    async with audio_client(service) as client:
        for path, given in (
            (PATH, {"files": {"file": ("a.wav", wav(SPEECH))}}),
            ("/v1/audio/speech", {"json": {"input": "hi"}}),
        ):
            reply = await client.post(path, **given)
            assert reply.status_code == 501 and reply.headers["x-should-retry"] == "false"
            assert "pip install 'vermilion[voice]'" in reply.json()["error"]["message"]
        translated = await client.post("/v1/audio/translations", files={"file": ("a.wav", wav(SPEECH))})
    assert translated.status_code == 501 and "chat/completions" in translated.text


def held(recognizer: ToneRecognizer) -> threading.Event:
    recognizer.held = threading.Event()
    return recognizer.held


async def test_only_so_many_calls_are_taken_at_once(
    recognizer: ToneRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpeechThread, "MOST_CALLS", 1)
    go_on = held(recognizer)
    async with audio_client(audio_service(recognizer, Hummer())) as client:
        first = asyncio.create_task(client.post(PATH, files={"file": ("a.wav", wav(recording(2)))}))
        await until(lambda: len(recognizer.asked) == 2)
        # The loop goes on while the first is recognised.
        second = await client.post(PATH, files={"file": ("a.wav", wav(SPEECH))})
        assert second.status_code == 429 and second.headers["Retry-After"] == "1"
        assert (await client.get("/health")).status_code == 200
        go_on.set()
        assert (await first).status_code == 200
        assert (await client.post(PATH, files={"file": ("a.wav", wav(SPEECH))})).status_code == 200


async def test_a_stop_in_the_middle_ends_a_transcript(recognizer: ToneRecognizer) -> None:
    go_on = held(recognizer)
    service = audio_service(recognizer, Hummer())
    async with audio_client(service) as client:
        running = asyncio.create_task(client.post(PATH, files={"file": ("a.wav", wav(recording(2)))}))
        await until(lambda: len(recognizer.asked) == 2)
        await service.drain(0.01)
        assert (await running).json()["error"]["code"] == "service_draining"
        late = await client.post(PATH, files={"file": ("a.wav", wav(SPEECH))})
        assert late.status_code == 503
        go_on.set()
