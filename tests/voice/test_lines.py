"""Calls through other protocols: phone providers by their documented messages, pipecat's harness."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import websockets
from numpy.typing import NDArray
from pipecat.audio.utils import create_stream_resampler, pcm_to_ulaw, ulaw_to_pcm
from pipecat.evals.scenario import EvalScenarioFile
from pipecat.evals.session import EvalSession
from pipecat.evals.tts import CachingTTSService

from tests.voice.scripted_model import ScriptedModel
from tests.voice.speaking import ear, heard, listening, mouth, speech
from vermilion.serving.audio.speech_threads import SpeechThread
from vermilion.voice.call import Agent
from vermilion.voice.persona import Persona
from vermilion.voice.speech_services import RecognizerService, SynthesizerService
from vermilion.voice.voice_app import create_voice_app

pytestmark = pytest.mark.voice

QUIET = Persona(greeting="", max_tokens=400)
STORY = " ".join(["Once there was a small brown dog who lived near a quiet river."] * 12)
FRAME_S, FRAME_BYTES = 0.02, 160
Message = dict[str, Any]


def twilio(payload: str) -> Message:
    media = {"track": "inbound", "chunk": "2", "timestamp": "5", "payload": payload}
    return {"event": "media", "sequenceNumber": "3", "media": media, "streamSid": "MZ18ad3ab5"}


def telnyx(payload: str) -> Message:
    media = {"track": "inbound", "chunk": "2", "timestamp": "5", "payload": payload}
    return {"event": "media", "sequence_number": "4", "media": media, "stream_id": "32de0dea"}


def plivo(payload: str) -> Message:
    media = {"track": "inbound", "timestamp": "1638360000", "chunk": 2, "payload": payload}
    return {"sequenceNumber": 3, "event": "media", "media": media, "streamId": "20170ada"}


OPENINGS: dict[str, tuple[list[Message], Callable[[str], Message]]] = {
    "twilio": (
        [
            {"event": "connected", "protocol": "Call", "version": "1.0.0"},
            {
                "event": "start",
                "sequenceNumber": "1",
                "start": {
                    "accountSid": "AC01",
                    "streamSid": "MZ18ad3ab5",
                    "callSid": "CA01",
                    "tracks": ["inbound"],
                    "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
                    "customParameters": {},
                },
                "streamSid": "MZ18ad3ab5",
            },
        ],
        twilio,
    ),
    "telnyx": (
        [
            {"event": "connected", "version": "1.0.0"},
            {
                "event": "start",
                "sequence_number": "1",
                "start": {
                    "call_control_id": "v2:T02llQxIyaRkhfRKxgAP8nY511EhFLizdvdUKJiSw8d6A9BborherQ",
                    "media_format": {"encoding": "PCMU", "sample_rate": 8000, "channels": 1},
                    "from": "+13122010094",
                    "to": "+13122123456",
                },
                "stream_id": "32de0dea",
            },
        ],
        telnyx,
    ),
    "plivo": (
        [
            {
                "sequenceNumber": 0,
                "event": "start",
                "start": {
                    "callId": "ad83a0b5",
                    "streamId": "20170ada",
                    "accountId": "MAM2",
                    "tracks": ["inbound"],
                    "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000},
                },
                "extra_headers": "{}",
            },
        ],
        plivo,
    ),
}


def agent_of(model_port: int, persona: Persona = QUIET) -> Agent:
    return Agent(ear(), mouth(), persona, f"http://127.0.0.1:{model_port}/v1", "scripted")


@pytest.mark.parametrize("provider", OPENINGS)
def test_a_phone_call_is_answered_in_the_providers_own_messages(provider: str) -> None:
    async def main() -> None:
        model = ScriptedModel(["The capital of France is Paris."])
        async with (
            listening(model.app) as model_port,
            listening(create_voice_app(agent_of(model_port))) as port,
            websockets.connect(f"ws://127.0.0.1:{port}/line") as phone,
        ):
            opening, media = OPENINGS[provider]
            for message in opening:
                await phone.send(json.dumps(message))
            talking = asyncio.create_task(talk(phone, media, speech("What is the capital of France?")))
            sound = await spoken(phone, "playAudio" if provider == "plivo" else "media")
            talking.cancel()
            assert "paris" in heard(sound, 8000)

    asyncio.run(main())


async def spoken(phone: Any, event: str) -> NDArray[np.int16]:
    """All sound until none comes for two seconds; the first may take longer."""
    resampler, pieces = create_stream_resampler(), [np.zeros(0, np.int16)]
    while True:
        try:
            answer = json.loads(await asyncio.wait_for(phone.recv(), 2 if len(pieces) > 1 else 20))
        except TimeoutError:
            return np.concatenate(pieces)
        if answer["event"] in ("clear", "clearAudio"):
            continue
        assert answer["event"] == event
        payload = base64.b64decode(answer["media"]["payload"])
        pieces.append(np.frombuffer(await ulaw_to_pcm(payload, 8_000, 8_000, resampler), np.int16))


async def talk(phone: Any, media: Callable[[str], Message], samples: NDArray[np.int16]) -> None:
    """In frames of 20 ms, as a phone does, and silence for ever after."""
    sound = await pcm_to_ulaw(samples.tobytes(), 16_000, 8_000, create_stream_resampler())
    due = time.monotonic()
    for start in range(0, 10**9, FRAME_BYTES):
        frame = sound[start : start + FRAME_BYTES].ljust(FRAME_BYTES, b"\xff")
        await phone.send(json.dumps(media(base64.b64encode(frame).decode())))
        due += FRAME_S
        await asyncio.sleep(max(0.0, due - time.monotonic()))


def test_a_line_of_an_unknown_kind_is_closed_with_the_known_ones() -> None:
    async def main() -> None:
        async with (
            listening(create_voice_app(agent_of(1))) as port,
            websockets.connect(f"ws://127.0.0.1:{port}/line") as phone,
        ):
            await phone.send('{"event": "hello"}')
            await phone.send('{"event": "start"}')
            with pytest.raises(websockets.ConnectionClosed, match="twilio, telnyx, plivo"):
                await asyncio.wait_for(phone.recv(), 10)

    asyncio.run(main())


@pytest.mark.parametrize("path", ["line", "ws"])
def test_a_page_of_another_site_cannot_begin_a_call(path: str) -> None:
    async def main() -> None:
        app = create_voice_app(agent_of(1))
        async with listening(app) as port:
            with pytest.raises(websockets.InvalidStatus, match="403"):
                await websockets.connect(f"ws://127.0.0.1:{port}/{path}", origin="https://evil.example")
            assert not app.state.switchboard.running
            own = websockets.connect(f"ws://127.0.0.1:{port}/{path}", origin=f"http://127.0.0.1:{port}")
            async with own:
                pass

    asyncio.run(main())


SCENARIOS = """
name: vermilion
user: {modality: audio, speech: {service: piper, voice: joe}}
judge:
  modality: audio
  transcription: {service: whisper}
scenarios:
  - name: capital
    turns:
      - user: "What is the capital of France?"
        expect:
          - {event: user_transcription, text_contains: "capital of France", within_ms: 20000}
          - {event: response, text_contains: "Paris", within_ms: 30000}
  - name: barge_in
    turns:
      - user: "Tell me a long story about a dog."
        expect:
          - {event: bot_started_speaking, within_ms: 30000}
      - user: "Stop. What is the capital of France?"
        send_after: {event: bot_started_speaking, delay_ms: 1500}
        expect:
          - {event: bot_interrupted, within_ms: 20000}
          - {event: response, text_contains: "Paris", within_ms: 40000}
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["capital", "barge_in"])
def test_a_scenario_of_pipecats_harness_passes(name: str, tmp_path: Any) -> None:
    file = tmp_path / "vermilion.yaml"
    file.write_text(SCENARIOS, encoding="utf-8")
    (scenario,) = [each for each in EvalScenarioFile.load(file).scenarios if each.name.endswith(name)]
    answers = ["The capital of France is Paris."]

    async def main() -> Any:
        model = ScriptedModel([STORY, *answers] if name == "barge_in" else answers)
        async with (
            listening(model.app) as model_port,
            listening(create_voice_app(agent_of(model_port))) as port,
        ):
            caller = SynthesizerService(mouth(), SpeechThread(mouth), sample_rate=16_000)
            session = EvalSession.from_scenario(
                scenario,
                f"ws://127.0.0.1:{port}/line",
                user_tts=CachingTTSService(caller, cache_key="piper", use_cache=False),
                bot_stt=RecognizerService(ear(), SpeechThread(ear)),
            )
            return await session.run()

    result = asyncio.run(main())
    assert result.passed, "\n".join(result.debug_log)
