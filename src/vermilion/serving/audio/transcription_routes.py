"""OpenAI's `/v1/audio/transcriptions`: a file of speech, as text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi.responses import Response
from starlette.datastructures import FormData, UploadFile

from vermilion.errors import BadParameter, BadRequest, VermilionError
from vermilion.serving.audio.audio_calls import audio_call, audio_tokens, check_model, events
from vermilion.serving.audio.recognition import RecognitionOptions, joined, recognized
from vermilion.serving.audio.transcripts import (
    LANGUAGES,
    RESPONSE_FORMATS,
    dumps,
    loads,
    rendered,
    token_usage,
)
from vermilion.serving.heavy_work import offload
from vermilion.serving.http import auth
from vermilion.serving.http.connection import while_connected
from vermilion.serving.http.form_bodies import read_form
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext
from vermilion.serving.http.routes import Route
from vermilion.serving.http.sse import EVENT_STREAM, FrameStream
from vermilion.speech.audio_decoding import decode
from vermilion.speech.recognizer import SAMPLE_RATE, Detail, Recognizer, Transcript
from vermilion.types import Usage

MODEL_NAMES = (
    "whisper-1",
    "gpt-transcribe",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-4o-mini-transcribe-2025-12-15",
)
"""OpenAI's, to which the local model answers."""
_GRANULARITIES = ("segment", "word")
_MOST_FIELDS = 40
_LONGEST_PROMPT = 4096
_TRUTHS = {"true": True, "1": True, "false": False, "0": False, "": False}


class NoTranslation(VermilionError):
    status = 501
    kind = "invalid_request_error"
    code = "unsupported_endpoint"

    def __init__(self) -> None:
        super().__init__(
            "Speech is not translated here. Ask /v1/audio/transcriptions for its text, and "
            "/v1/chat/completions for a translation of that."
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """The form's fields."""

    file: UploadFile
    model: str | None
    options: RecognitionOptions
    format: str
    granularities: tuple[str, ...]
    stream: bool


def _asked(form: FormData) -> Asked:
    """Raises `BadRequest`."""
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise BadRequest("file: send a file in a multipart form.", "file", "missing_required_parameter")
    if not file.size:
        raise BadRequest("file: it is empty.", "file", "invalid_file_format")
    format = _text(form, "response_format") or "json"
    if format not in RESPONSE_FORMATS:
        raise BadParameter("response_format", format, ", ".join(RESPONSE_FORMATS))
    granularities = tuple(
        str(value)
        for name in ("timestamp_granularities[]", "timestamp_granularities")
        for value in form.getlist(name)
    )
    for unit in granularities:
        if unit not in _GRANULARITIES:
            raise BadParameter("timestamp_granularities", unit, " or ".join(_GRANULARITIES))
    if granularities and format != "verbose_json":
        raise BadParameter("response_format", format, "verbose_json where timestamp_granularities is given")
    if form.getlist("include[]") or form.getlist("include"):
        raise BadParameter("include", "logprobs", "nothing", "Segments of verbose_json have avg_logprob.")
    stream = _TRUTHS.get((_text(form, "stream") or "").lower())
    if stream is None:
        raise BadParameter("stream", form.get("stream"), "true or false")
    if stream and format not in ("json", "text"):
        raise BadParameter("response_format", format, "json or text where stream is true")
    prompt = _text(form, "prompt") or ""
    if len(prompt) > _LONGEST_PROMPT:
        raise BadParameter("prompt", prompt, f"at most {_LONGEST_PROMPT} characters")
    _check_temperature(form)
    detail: Detail = "text" if format in ("json", "text") else "segments"
    if "word" in granularities:
        detail = "words"
    options = RecognitionOptions(detail, _text(form, "language") or None, prompt)
    return Asked(file, _text(form, "model"), options, format, granularities, stream)


def _text(form: FormData, name: str) -> str | None:
    value = form.get(name)
    if isinstance(value, UploadFile):
        raise BadRequest(f"{name}: send it as a text, not as a file.", name, "invalid_type")
    return value


def _check_temperature(form: FormData) -> None:
    """The likeliest text is told at any temperature."""
    given = _text(form, "temperature") or "0"
    try:
        temperature = float(given)
    except ValueError:
        temperature = math.nan
    if not 0 <= temperature <= 1:
        raise BadParameter("temperature", given, "0 to 1")


def _check_language(options: RecognitionOptions, model: Recognizer) -> None:
    known = LANGUAGES if model.multilingual else ("en",)
    if options.language is not None and options.language not in known:
        raise BadParameter("language", options.language, ", ".join(known), f"The model is {model.name}.")


async def _digest(form: FormData, file: UploadFile) -> str:
    """Tells a repetition of the call from another one."""
    whole = hashlib.sha256()
    for name, value in form.multi_items():
        if not isinstance(value, UploadFile):
            whole.update(f"{name}\0{value}\0".encode())

    def read() -> bytes:
        file.file.seek(0)
        return hashlib.sha256(file.file.read()).digest()

    whole.update(await offload(read))
    return whole.hexdigest()


async def _heard(context: RequestContext, asked: Asked) -> AsyncGenerator[tuple[Transcript, bool], None]:
    """The transcript of each piece as it is recognised, then of the whole; and whether it is the whole."""
    service = context.service
    thread = service.speech.hearing
    async with thread.enter():
        model = await thread.model()
        name = f"stt-{model.name}"
        check_model(asked.model, name, MODEL_NAMES)
        _check_language(asked.options, model)
        async with audio_call(service, name) as call:
            most_s = service.config.max_audio_s
            samples_S = await thread.run(lambda: decode(asked.file.file, most_s))
            num_tokens = audio_tokens(len(samples_S), SAMPLE_RATE)
            replay = await call.ledger.begin(num_tokens)
            if replay is not None:
                yield loads(replay), True
                return
            pieces = []
            async for piece in call.each(thread.each(recognized(model, samples_S, asked.options))):
                pieces.append(piece)
                heard_s = sum(one.duration_s for one in pieces)
                heard = audio_tokens(round(heard_s * SAMPLE_RATE), SAMPLE_RATE)
                call.usage = Usage(prompt_tokens=heard)
                yield piece, False
            whole = joined(pieces, len(samples_S))
            call.usage = Usage(prompt_tokens=num_tokens)
            await call.settle(dumps(whole) if call.ledger.keeps_reply else None)
            yield whole, True


async def _told(
    heard: AsyncGenerator[tuple[Transcript, bool], None], form: FormData
) -> AsyncGenerator[dict[str, Any], None]:
    """As OpenAI's events tell a transcript; the deltas together are its text."""
    started = False
    try:
        async with aclosing(heard):
            async for transcript, whole in heard:
                text = transcript.text
                if whole:
                    yield {"type": "transcript.text.done", "text": text, "usage": token_usage(transcript)}
                elif text:
                    yield {"type": "transcript.text.delta", "delta": f" {text}" if started else text}
                    started = True
    finally:
        await form.close()


async def _last(heard: AsyncGenerator[tuple[Transcript, bool], None]) -> Transcript:
    async with aclosing(heard):
        return [transcript async for transcript, _ in heard][-1]


async def transcriptions(context: RequestContext) -> Response:
    form = await read_form(context.http, context.service.config.max_audio_bytes, _MOST_FIELDS)
    streaming = False
    try:
        asked = _asked(form)
        visit = auth.VISIT.get()
        if visit is not None and visit.idempotency_key is not None:
            visit.body_digest = await _digest(form, asked.file)
        heard = _heard(context, asked)
        if asked.stream:
            streaming = True
            return FrameStream(events(_told(heard, form)), EVENT_STREAM)
        transcript = await while_connected(context.http.receive, _last(heard))
        content, media_type = rendered(transcript, asked.format, asked.granularities)
        return Response(content, media_type=media_type)
    finally:
        if not streaming:
            await form.close()


async def translations(context: RequestContext) -> Response:
    raise NoTranslation


TRANSCRIBE = operation(
    "audio",
    "Speech to text",
    "A multipart form as OpenAI's: `file` and, at will, `model`, `language`, `prompt`, `response_format` "
    "(`json`, `text`, `srt`, `vtt`, `verbose_json`), `timestamp_granularities[]`, `temperature`, `stream`.",
    None,
    {"text": "What is the capital of France?", "usage": token_usage(Transcript("", (), 0.0, "en", 1.9))},
    'data: {"type": "transcript.text.delta", "delta": "What is the capital of France?"}\n\n',
)
TRANSLATE = operation(
    "audio",
    "No translation of speech",
    "Always 501: clients that look for it are told what to ask instead.",
    None,
    {"error": {"message": "Speech is not translated here.", "code": NoTranslation.code}},
)
ROUTES = (
    Route("POST", "/v1/audio/transcriptions", transcriptions, TRANSCRIBE, needs_model=False),
    Route("POST", "/v1/audio/translations", translations, TRANSLATE, needs_model=False),
)
