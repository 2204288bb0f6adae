"""OpenAI's `/v1/audio/speech`: a text, spoken."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any, Literal

from fastapi.responses import Response
from pydantic import BaseModel, Field

from vermilion.errors import BadParameter
from vermilion.serving.audio.audio_calls import audio_call, audio_tokens, check_model, events
from vermilion.serving.http import auth
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import Route
from vermilion.serving.http.sse import EVENT_STREAM, FrameStream
from vermilion.serving.wire.openai_bodies import WIRE
from vermilion.speech.audio_encoding import MEDIA_TYPES, AudioEncoder
from vermilion.speech.synthesizer import Synthesizer
from vermilion.types import Usage

MODEL_NAMES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts", "gpt-4o-mini-tts-2025-12-15")
VOICE_NAMES = (
    "alloy", "ash", "ballad", "coral", "echo", "fable", "onyx", "nova", "sage", "shimmer", "verse", "marin",
    "cedar",
)  # fmt: skip
"""OpenAI's, for which the local voice stands in."""
_MOST_CHARACTERS = 4096
_LONGEST_PIECE = 300
"""Characters spoken at once: the first sound waits for the whole of the first piece."""
_PIECE = re.compile(
    rf".{{1,{_LONGEST_PIECE}}}?(?:[.!?…。！？]{{1,20}}[\"')\]]{{0,3}}(?:\s+|\Z)|\n\s*|\Z)", re.DOTALL
)
_BREAK = re.compile(rf".{{1,{_LONGEST_PIECE}}}(?:\s+|\Z)|.{{1,{_LONGEST_PIECE}}}", re.DOTALL)


class CustomVoice(BaseModel):
    model_config = WIRE

    id: str


class SpeechBody(BaseModel):
    """Body of POST /v1/audio/speech."""

    model_config = WIRE

    input: str = Field(max_length=_MOST_CHARACTERS, description="The text to speak.")
    model: str | None = Field(None, description="The local model's name or one of OpenAI's.")
    voice: str | CustomVoice | None = Field(
        None, description="One of `GET /v1/audio/voices`; the local voice stands in for OpenAI's."
    )
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = Field(
        None, description="`mp3` if left out. `pcm` is mono, 16 bits, 24 kHz."
    )
    speed: float | None = Field(None, ge=0.25, le=4, allow_inf_nan=False, description="1 is usual.")
    stream_format: Literal["audio", "sse"] | None = Field(
        None, description="`sse` sends the audio in events, as base64."
    )
    instructions: str | None = Field(None, description="Not followed: these voices have one way of speaking.")


@dataclass(frozen=True, slots=True)
class Spoken:
    """A piece of the reply, for so many characters; `num_samples` at the synthesiser's rate."""

    content: bytes
    num_characters: int
    num_samples: int


def pieces(text: str) -> list[str]:
    """Sentences, and parts of long ones, that together are the text."""
    found, place = [], 0
    while place < len(text):
        match = _PIECE.match(text, place) or _BREAK.match(text, place)
        assert match is not None
        found.append(match[0])
        place = match.end()
    return found


def _spoken(model: Synthesizer, body: SpeechBody) -> Iterator[Spoken]:
    with closing(AudioEncoder(body.response_format or "mp3", model.sample_rate)) as encoder:
        for text in pieces(body.input):
            if not text.strip():
                yield Spoken(b"", len(text), 0)
                continue
            parts = list(model.speak(text.strip(), 1.0 if body.speed is None else body.speed))
            content = b"".join(encoder.encode(samples_S) for samples_S in parts if len(samples_S))
            yield Spoken(content, len(text), sum(map(len, parts)))
        yield Spoken(encoder.finish(), 0, 0)


def _check_voice(body: SpeechBody, model: Synthesizer) -> None:
    asked = body.voice.id if isinstance(body.voice, CustomVoice) else body.voice
    if asked is not None and asked not in (model.name, *VOICE_NAMES):
        raise BadParameter("voice", asked, ", ".join((model.name, *VOICE_NAMES)))


async def _audio(context: RequestContext, body: SpeechBody) -> AsyncGenerator[bytes | Usage, None]:
    """The file piece by piece, then what it cost."""
    thread = context.service.speech.speaking
    async with thread.enter():
        model = await thread.model()
        name = f"tts-{model.name}"
        check_model(body.model, name, MODEL_NAMES)
        _check_voice(body, model)
        async with audio_call(context.service, name) as call:
            await call.ledger.begin(len(body.input))
            num_samples, last = 0, b""
            async for spoken in call.each(thread.each(_spoken(model, body))):
                num_samples += spoken.num_samples
                call.usage = Usage(
                    prompt_tokens=call.usage.prompt_tokens + spoken.num_characters,
                    completion_tokens=audio_tokens(num_samples, model.sample_rate),
                )
                if spoken.num_characters:
                    yield spoken.content
                else:
                    last = spoken.content
            await call.settle()
            yield last
            yield call.usage


async def _file(audio: AsyncGenerator[bytes | Usage, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(audio):
        async for item in audio:
            if isinstance(item, bytes) and item:
                yield item


async def _told(audio: AsyncGenerator[bytes | Usage, None]) -> AsyncGenerator[dict[str, Any], None]:
    """As OpenAI's events tell it."""
    async with aclosing(audio):
        async for item in audio:
            if isinstance(item, Usage):
                yield {"type": "speech.audio.done", "usage": _usage(item)}
            elif item:
                yield {"type": "speech.audio.delta", "audio": base64.b64encode(item).decode("ascii")}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


async def speech(context: RequestContext, body: SpeechBody) -> Response:
    if not body.input.strip():
        raise BadParameter("input", body.input, "a text with at least one letter")
    visit = auth.VISIT.get()
    if visit is not None:
        # Audio is too large to be kept for a repetition, which is spoken and counted anew.
        visit.idempotency_key = None
    audio = _audio(context, body)
    if body.stream_format == "sse":
        return FrameStream(events(_told(audio)), EVENT_STREAM)
    return FrameStream(_file(audio), MEDIA_TYPES[body.response_format or "mp3"])


async def voices(context: RequestContext) -> Response:
    model = await context.service.speech.speaking.model()
    return json_response({"voices": [{"id": model.name, "name": model.name}]})


SPEAK = operation(
    "audio",
    "Text to speech",
    "The audio comes as it is spoken, sentence by sentence.",
    {
        "A file": {"input": "Hello there.", "model": "tts-1", "voice": "alloy"},
        "Events": {"input": "Hello there.", "response_format": "pcm", "stream_format": "sse"},
    },
    {},
    {"audio/mpeg": {"schema": {"type": "string", "format": "binary"}}},
)
VOICES = operation("audio", "The voices", "", None, {"voices": [{"id": "piper", "name": "piper"}]})
ROUTES = (
    Route("POST", "/v1/audio/speech", speech, SPEAK, body=SpeechBody, needs_model=False),
    Route("GET", "/v1/audio/voices", voices, VOICES, needs_model=False),
)
