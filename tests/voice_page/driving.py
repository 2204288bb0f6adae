"""The voice process with real ears and a real mouth, and Chromium with a recorded caller."""

from __future__ import annotations

import base64
import io
import re
import socket
import threading
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvicorn
from numpy.typing import NDArray
from playwright.sync_api import Page

from console.driving import ConsoleService, Visitor, chromium, visitor
from vermilion.speech.audio_decoding import decode
from vermilion.speech.recognizer import Recognizer
from vermilion.speech.synthesizer import Synthesizer
from vermilion.voice.call import Agent
from vermilion.voice.voice_app import create_voice_app

_MICROPHONE_HZ = 48_000
_SILENCE_MS = 2000
RECORDER = Path(__file__).parent / "played_sound.js"
SPEAKER = Path(__file__).parent / "spoken_sound.js"


@contextmanager
def voice_process(agent: Agent) -> Iterator[str]:
    """Its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_voice_app(agent), log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


def recording(mouth: Synthesizer, path: Path, *said: str | float) -> Path:
    """A WAV file of texts, and of silences of so many seconds."""
    parts = [
        np.zeros(int(one * mouth.sample_rate), np.int16)
        if isinstance(one, float)
        else np.concatenate(list(mouth.speak(one)))
        for one in said
    ]
    samples = np.concatenate(parts)
    places = np.arange(0, len(samples), mouth.sample_rate / _MICROPHONE_HZ)
    heard = np.interp(places, np.arange(len(samples)), samples).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_MICROPHONE_HZ)
        file.writeframes(heard.tobytes())
    return path


@dataclass
class Caller:
    """One window on the page."""

    here: Visitor

    @property
    def page(self) -> Page:
        return self.here.page

    def call(self, connection: str = "webrtc", microphone: str = "open") -> None:
        self.page.get_by_label("Connection").select_option(connection)
        self.page.get_by_label("Microphone").select_option(microphone)
        self.here.click("Start the call")
        self.page.get_by_role("button", name="Hang up").wait_for()

    def write(self, text: str) -> None:
        """Types a turn."""
        self.page.get_by_label("Type instead of speaking").fill(text)
        self.page.keyboard.press("Enter")

    def microphone(self, script: str) -> None:
        """What happens where the page asks for one."""
        self.page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = async () => {{ {script} }} }}")

    def speak(self, recorded: Path) -> None:
        """Says it into the microphone of a `listening` caller, and returns when it is said."""
        self.page.evaluate("wav => speak(wav)", base64.b64encode(recorded.read_bytes()).decode())

    def said(self, who: str) -> list[str]:
        return self.page.locator(f"li.{who} .said").all_inner_texts()

    def wait_for(self, who: str, words: str) -> None:
        self.page.locator(f"li.{who}", has_text=re.compile(words, re.IGNORECASE)).first.wait_for()

    def state(self, words: str) -> None:
        self.page.locator(".state", has_text=words).wait_for()

    def until_spoken(self, ended: str = "Listening") -> None:
        """Returns when the agent has been silent for so long that it is not between two sentences."""
        while True:
            self.state(ended)
            self.page.wait_for_timeout(_SILENCE_MS)
            if self.page.locator(".state", has_text=ended).count():
                return

    def played(self) -> NDArray[np.float32]:
        """What the loudspeaker was given since the call began, at 16 kHz."""
        return decode(io.BytesIO(base64.b64decode(self.page.evaluate("playedSound()"))), 600)

    def played_words(self, ear: Recognizer) -> set[str]:
        return words(ear.transcribe(self.played(), detail="segments").text)


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


@contextmanager
def caller(url: str, microphone: Path | None = None, *, refused: bool = False) -> Iterator[Caller]:
    """A window whose microphone hears the recording again and again, or without one what `Caller.speak` is
    given; or it is `refused` to the page."""
    arguments = ["--use-fake-device-for-media-stream", "--autoplay-policy=no-user-gesture-required"]
    arguments.append("--deny-permission-prompts" if refused else "--use-fake-ui-for-media-stream")
    if microphone is not None:
        arguments.append(f"--use-file-for-fake-audio-capture={microphone}")
    service = ConsoleService(url, "", "")
    with chromium(*arguments) as browser, visitor(browser, service) as here:
        here.page.add_init_script(path=RECORDER)
        if microphone is None and not refused:
            here.page.add_init_script(path=SPEAKER)
        here.page.goto(url)
        here.page.get_by_text("hears,").wait_for()
        yield Caller(here)
    assert not here.complaints, here.complaints
