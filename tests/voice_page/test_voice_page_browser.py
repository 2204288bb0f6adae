"""Calls from the page in Chromium, with a recorded voice for a microphone (scripts/test-voice-page)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="scripts/test-voice-page installs it")
pytest.importorskip("pipecat", reason="scripts/test-voice-page installs it")
from console.driving import NARROW, WIDE
from serving.fake import MODEL, FakeBackend
from serving.threaded import threaded
from vermilion.speech.recognizer import Recognizer
from vermilion.speech.synthesizer import Synthesizer
from vermilion.voice.call import Agent
from vermilion.voice.persona import Persona
from voice_page.driving import Caller, caller, recording, voice_process, words

pytestmark = [pytest.mark.browser, pytest.mark.voice]
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris. It lies on the river Seine."
TALE = "Once there was a river that ran to the sea and sang all night about the stones."


@pytest.fixture(scope="module")
def backend() -> FakeBackend:
    return FakeBackend(step_s=0.03, model=replace(MODEL, context_length=4096))


@pytest.fixture(scope="module")
def url(ear: Recognizer, mouth: Synthesizer, backend: FakeBackend) -> Iterator[str]:
    with threaded(backend) as service:
        agent = Agent(ear, mouth, Persona(greeting=""), f"{service}/v1", MODEL.id)
        agent.warm()
        with voice_process(agent) as address:
            yield address


def asked(backend: FakeBackend) -> str:
    """What the service was asked last, the conversation before it too."""
    return "".join(map(chr, backend.requests[-1].prompt))


@pytest.fixture
def asks(mouth: Synthesizer, tmp_path: Path) -> Path:
    """A caller who asks and then listens, and asks again where nobody listened."""
    return recording(mouth, tmp_path / "asks.wav", 4.0, QUESTION, 20.0)


@pytest.fixture
def answer(backend: FakeBackend) -> Iterator[None]:
    backend.words, backend.endless = tuple(f"{word} " for word in ANSWER.split()), False
    yield


@pytest.mark.usefixtures("answer")
@pytest.mark.parametrize("connection", ["webrtc", "websocket"])
def test_a_question_is_answered_so_that_it_can_be_heard(
    url: str, asks: Path, ear: Recognizer, connection: str
) -> None:
    with caller(url, asks) as here:
        here.call(connection)
        here.wait_for("you", "capital of france")
        here.wait_for("agent", "seine")
        here.until_spoken()
        assert here.said("agent")[0] == ANSWER
        here.page.locator(".canvas", has_text=ANSWER).wait_for()
        stages = here.page.locator("table th").all_inner_texts()
        assert {"recognition", "first text", "speech", "together"} <= set(stages)
        heard = here.played_words(ear)
        assert "capital" in heard and len(heard & words(ANSWER)) >= 0.6 * len(words(ANSWER)), heard
        here.here.click("Hang up")
        here.state("No call")


def test_who_speaks_into_an_answer_ends_it(
    url: str, mouth: Synthesizer, backend: FakeBackend, tmp_path: Path
) -> None:
    backend.words, backend.endless = tuple(f"{word} " for word in TALE.split()), True
    cancelled = backend.cancelled
    interrupts = recording(mouth, tmp_path / "two.wav", 4.0, QUESTION, 5.0, "Stop, please stop now.", 5.0)
    with caller(url, interrupts) as here:
        here.call("websocket")
        here.wait_for("agent", "river")
        here.page.locator("li.agent .cut").first.wait_for()
        assert "interrupted" in here.page.get_by_role("status").inner_text()
        here.wait_for("you", "stop")
        assert backend.cancelled > cancelled
        here.here.click("Hang up")


@pytest.mark.usefixtures("answer")
def test_a_closed_microphone_hears_nothing_until_the_button_or_the_space_bar_is_held(
    url: str, mouth: Synthesizer, tmp_path: Path
) -> None:
    """The caller speaks without end."""
    speaks = recording(mouth, tmp_path / "speaks.wav", QUESTION, 1.5)
    with caller(url, speaks) as here:
        here.call("webrtc", "push")
        here.state("Microphone closed")
        here.page.wait_for_timeout(5000)
        assert here.said("you") == []
        here.page.locator("main h1").click()
        here.page.keyboard.down(" ")
        here.page.wait_for_timeout(3500)
        here.page.keyboard.up(" ")
        here.wait_for("you", "capital|france")
        talk = here.page.get_by_role("button", name="Hold to talk")
        talk.focus()
        here.page.keyboard.press("Enter")
        assert here.page.get_by_role("button", name="Listening").get_attribute("aria-pressed") == "true"
        here.page.keyboard.press("Enter")
        assert talk.get_attribute("aria-pressed") == "false"


@pytest.mark.usefixtures("answer")
@pytest.mark.parametrize("connection", ["webrtc", "websocket"])
def test_a_typed_turn_is_answered_aloud_without_a_microphone(
    url: str, ear: Recognizer, backend: FakeBackend, connection: str
) -> None:
    """Nobody is asked for one, and the call begins with the first turn."""
    with caller(url, refused=True) as here:
        here.microphone("console.error('asked for')")
        here.page.get_by_label("Connection").select_option(connection)
        field = here.page.get_by_label("Type instead of speaking")
        here.write(QUESTION)
        here.wait_for("agent", "seine")
        here.until_spoken("No microphone, type")
        assert here.said("you") == [QUESTION] and here.said("agent") == [ANSWER]
        assert QUESTION in asked(backend)
        here.page.locator(".canvas", has_text=ANSWER).wait_for()
        here.page.locator("caption", has_text="Typed turn 1").wait_for()
        assert field.input_value() == ""
        assert here.page.evaluate("document.activeElement.id") == "typed"
        heard = here.played_words(ear)
        assert len(heard & words(ANSWER)) >= 0.6 * len(words(ANSWER)), heard
        assert here.page.get_by_label("Connection").input_value() == connection
        field.fill("And of Spain?")
        here.here.click("Send")
        here.page.locator("caption", has_text="Typed turn 2").wait_for()
        assert here.page.evaluate("document.activeElement.id") == "typed"
        assert here.said("you") == [QUESTION, "And of Spain?"] and here.said("agent")[1:]
        assert ANSWER in asked(backend), "the conversation goes on"
        here.here.click("Hang up")


def test_who_types_into_an_answer_ends_it(url: str, backend: FakeBackend) -> None:
    backend.words, backend.endless = tuple(f"{word} " for word in TALE.split()), True
    cancelled = backend.cancelled
    with caller(url, refused=True) as here:
        here.write("Tell me a tale.")
        here.state("The agent speaks")
        here.write("Tell me another.")
        here.page.locator("li:nth-child(4).agent", has_text="river").wait_for()
        assert here.page.locator("li:nth-child(2).agent .cut").is_visible()
        assert not here.page.locator("li:nth-child(4) .cut").is_visible()
        assert "interrupted" in here.page.get_by_role("status").inner_text()
        assert here.said("you") == ["Tell me a tale.", "Tell me another."]
        assert backend.cancelled == cancelled + 1
        here.here.click("Hang up")


@pytest.mark.usefixtures("answer")
def test_a_refused_microphone_is_told_in_words_and_the_call_goes_on_by_typing(url: str) -> None:
    with caller(url, refused=True) as here:
        here.here.click("Start the call")
        told = here.page.get_by_role("alert")
        told.wait_for()
        here.state("No microphone, type")
        for part in ("microphone was refused", "type what you would say", "address bar", "hang up"):
            assert part in told.inner_text()
        assert here.page.evaluate("document.activeElement.id") == "typed"
        assert here.page.get_by_label("Microphone").is_disabled()
        _look(here)
        here.page.keyboard.type(QUESTION)
        here.page.keyboard.press("Enter")
        here.wait_for("agent", "seine")


def test_a_missing_microphone_is_told_in_words(url: str) -> None:
    with caller(url, refused=True) as here:
        here.microphone("throw new DOMException('', 'NotFoundError')")
        here.here.click("Start the call")
        told = here.page.get_by_role("alert")
        told.wait_for()
        assert "No microphone was found" in told.inner_text() and "connect one" in told.inner_text()
        here.state("No microphone, type")


@pytest.mark.usefixtures("answer")
def test_where_webrtc_finds_no_way_the_call_goes_over_a_websocket(url: str, asks: Path) -> None:
    with caller(url, asks) as here:
        here.page.route("**/api/offer", lambda route: route.fulfill(status=403, json={}))
        here.call("webrtc")
        here.wait_for("agent", "seine")
        assert here.page.get_by_label("Connection").input_value() == "websocket"
        # The browser itself tells of the refused offer.
        here.here.complaints[:] = [one for one in here.here.complaints if "403" not in one]


@pytest.mark.usefixtures("answer")
def test_axe_finds_nothing_and_nothing_is_too_wide(url: str, asks: Path) -> None:
    with caller(url, asks) as here:
        _look(here)
        here.call("websocket", "push")
        here.page.get_by_label("Microphone").select_option("open")
        here.wait_for("agent", "seine")
        _look(here)


def _look(here: Caller) -> None:
    for scheme in ("light", "dark"):
        here.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        for width, height in (WIDE, NARROW):
            here.page.set_viewport_size({"width": width, "height": height})
            # Buttons pass from one colour to the other, from the next frame on.
            here.page.evaluate("new Promise(done => requestAnimationFrame(_ => requestAnimationFrame(done)))")
            here.page.evaluate("Promise.all(document.getAnimations().map(one => one.finished))")
            assert here.here.violations() == [], (scheme, width)
            assert not here.here.too_wide(), (scheme, width)


@pytest.mark.usefixtures("answer")
def test_a_call_can_be_made_with_the_keyboard_alone(url: str, asks: Path) -> None:
    with caller(url, asks) as here:
        page, reached = here.page, []
        for _ in range(5):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.textContent.trim().slice(0, 14)"))
        assert reached[:2] == ["Dark", "Start the call"]
        assert page.evaluate("document.activeElement.getAttribute('role')") == "log"
        page.get_by_role("button", name="Start the call").focus()
        page.keyboard.press("Enter")
        here.wait_for("agent", "paris")
        page.get_by_role("button", name="Hang up").focus()
        page.keyboard.press("Enter")
        here.state("No call")
