"""Calls from the page with nothing made up but the caller: the embedded model in a service of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("playwright", reason="scripts/test-voice-page installs it")
pytest.importorskip("pipecat", reason="scripts/test-voice-page installs it")
from clients.running import MODEL, Running, running
from vermilion.speech.recognizer import Recognizer
from vermilion.speech.synthesizer import Synthesizer
from vermilion.voice.call import Agent
from vermilion.voice.persona import Persona
from voice_page.driving import caller, recording, voice_process, words

pytestmark = [pytest.mark.browser, pytest.mark.voice, pytest.mark.model]
CONNECTIONS = pytest.mark.parametrize("connection", ["webrtc", "websocket"])
STORY = "Write a very long story about a dog and a cat, with many chapters."
TALKATIVE = Persona(greeting="", max_tokens=4000, temperature=0.0)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service") / "log") as opened:
        yield opened


@pytest.fixture(scope="module")
def url(ear: Recognizer, mouth: Synthesizer, service: Running) -> Iterator[str]:
    agent = Agent(ear, mouth, TALKATIVE, service.v1, MODEL)
    agent.warm()
    with voice_process(agent) as address:
        yield address


def gauge(service: Running, name: str) -> float:
    lines = httpx.get(f"{service.url}/metrics").text.splitlines()
    return sum(float(line.split()[1]) for line in lines if line.split()[0] == name)


@CONNECTIONS
def test_a_spoken_question_is_answered_aloud(
    url: str, service: Running, ear: Recognizer, mouth: Synthesizer, tmp_path: Path, connection: str
) -> None:
    asks = recording(mouth, tmp_path / "asks.wav", 4.0, "What is the capital of France?", 25.0)
    with caller(url, asks) as here:
        here.call(connection)
        here.wait_for("you", "capital of france")
        here.wait_for("agent", "paris")
        here.until_spoken()
        answer = here.said("agent")[-1]
        canvas = here.page.locator(".canvas")
        assert canvas.inner_text().strip() == answer, "it has settled into what was spoken"
        assert int(canvas.get_attribute("data-pass") or 0) > 1
        assert not canvas.locator(".masked, .filled").count()
        times = [int(text.split()[0]) for text in here.page.locator("td.ms").all_inner_texts()]
        assert len(times) >= 6 and sum(times[:-1]) == pytest.approx(times[-1], abs=len(times))
        heard = here.played_words(ear)
        assert "paris" in heard and len(heard & words(answer)) >= 0.6 * len(words(answer)), heard
        assert here.page.get_by_label("Connection").input_value() == connection
        here.here.click("Hang up")
        here.state("No call")
    assert gauge(service, "vermilion_running_requests") == 0


@CONNECTIONS
def test_who_speaks_into_an_answer_interrupts_it_and_frees_its_row(
    url: str, service: Running, mouth: Synthesizer, tmp_path: Path, connection: str
) -> None:
    """The story is asked for in writing: the answer to a question that is misheard may be short."""
    asks = recording(mouth, tmp_path / "asks.wav", "What is the capital of France?", 0.5)
    with caller(url) as here:
        here.call(connection)
        cancelled = gauge(service, "vermilion_cancellations_total")
        here.write(STORY)
        here.state("The agent speaks")
        assert gauge(service, "vermilion_running_requests") == 1, "the answer must still be coming"
        here.speak(asks)
        here.page.locator("li.agent .cut").wait_for()
        assert "You interrupted" in here.page.get_by_role("status").inner_text()
        here.wait_for("you", "capital")
        here.page.locator("li.agent:last-child", has_text="aris").wait_for()
        here.state("Listening")
        assert gauge(service, "vermilion_cancellations_total") > cancelled
        here.here.click("Hang up")
    deadline_s = time.monotonic() + 5
    while gauge(service, "vermilion_running_requests") and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert gauge(service, "vermilion_running_requests") == 0


def test_a_typed_turn_is_answered_aloud(url: str, ear: Recognizer) -> None:
    with caller(url, refused=True) as here:
        here.write("What is the capital of France?")
        here.wait_for("agent", "paris")
        here.page.locator("caption", has_text="Typed turn 1").wait_for()
        here.until_spoken("No microphone, type")
        assert "paris" in here.played_words(ear)
