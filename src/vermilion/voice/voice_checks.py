"""What a call needs, looked at one by one: packages, weights, microphone, ports, the time of a stage."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np

from vermilion.errors import VermilionError
from vermilion.speech import speech_models
from vermilion.speech.recognizer import SAMPLE_RATE, find_recognizer
from vermilion.speech.synthesizer import find_synthesizer
from vermilion.voice.model_service import answers

_PACKAGES = ("pipecat", "faster_whisper", "piper", "pocketsphinx", "aiortc", "soundfile", "soxr")
_SENTENCE = "The table is booked for seven o'clock."
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class VoiceCheck:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


def checks(service: str, key: str, port: int) -> Iterator[VoiceCheck]:
    """In the order of a call."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    told = f"missing: {', '.join(missing)}. Run: pip install 'vermilion[voice]'" if missing else "installed"
    yield VoiceCheck("packages", not missing, told)
    yield from _weights()
    yield _microphone()
    yield _port(port)
    yield from _speech()
    yield _service(service, key)


def _weights() -> Iterator[VoiceCheck]:
    for name, model in speech_models.SPEECH_MODELS.items():
        size = f"{model.size_bytes / 1e6:.0f} MB"
        if not speech_models.is_pulled(name):
            yield VoiceCheck("weights", True, f"{name}: not pulled ({size}); {model.pulled_by} fetches it")
            continue
        try:
            folder = speech_models.checked_folder(name)
            yield VoiceCheck("weights", True, f"{name}: every SHA-256 fits, {folder}")
        except VermilionError as error:
            yield VoiceCheck("weights", False, str(error))


def _microphone() -> VoiceCheck:
    """The page uses the browser's; it need not be one of this machine."""
    if sys.platform != "linux":
        return VoiceCheck("microphone", True, "the browser asks for it")
    inputs = sorted(path.name for path in Path("/dev/snd").glob("pcm*c")) if Path("/dev/snd").is_dir() else []
    found = ", ".join(inputs) or "none on this machine; open the page on one that has one, or use `voice say`"
    return VoiceCheck("microphone", True, found)


def _port(port: int) -> VoiceCheck:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        return VoiceCheck("port", False, f"{port}: {error.strerror}; --port chooses another")
    return VoiceCheck("port", True, f"{port} is free")


def _speech() -> Iterator[VoiceCheck]:
    try:
        synthesizer = find_synthesizer()
        next(iter(synthesizer.speak("Ready.")), None)
        started = time.perf_counter()
        samples = np.concatenate(list(synthesizer.speak(_SENTENCE)))
        took_ms = (time.perf_counter() - started) * 1000
        length_s = len(samples) / synthesizer.sample_rate
        yield VoiceCheck(
            "mouth", True, f"{synthesizer.name}: {took_ms:.0f} ms for {length_s:.1f} s of speech"
        )
    except VermilionError as error:
        yield VoiceCheck("mouth", False, str(error))
        return
    try:
        recognizer = find_recognizer()
        positions = np.arange(0, len(samples), synthesizer.sample_rate / SAMPLE_RATE)
        heard = np.interp(positions, np.arange(len(samples)), samples).astype(np.int16)
        recognizer.transcribe(heard)
        started = time.perf_counter()
        text = recognizer.transcribe(heard).text
        took_ms = (time.perf_counter() - started) * 1000
        yield VoiceCheck("ear", bool(text), f"{recognizer.name}: {took_ms:.0f} ms, heard {text!r}")
    except VermilionError as error:
        yield VoiceCheck("ear", False, str(error))


def _service(service: str, key: str) -> VoiceCheck:
    if not answers(service):
        return VoiceCheck("service", True, f"none at {service}; `vermilion voice` starts one")
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16, "stream": True}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = Request(
        f"{service}/v1/chat/completions", json.dumps({**body, "realtime": True}).encode(), headers
    )
    started = time.perf_counter()
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=_TIMEOUT_S) as reply:
            for line in reply:
                if b'"content":"' in line:
                    took_ms = (time.perf_counter() - started) * 1000
                    return VoiceCheck("service", True, f"{service}: first text after {took_ms:.0f} ms")
    except HTTPError as error:
        return VoiceCheck("service", False, f"{service} answers {error.code}; --key gives it a key")
    except (URLError, OSError) as error:
        return VoiceCheck("service", False, f"{service}: {error}")
    return VoiceCheck("service", False, f"{service} answered without text")
