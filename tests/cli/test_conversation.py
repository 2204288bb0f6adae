"""`vermilion chat`: turns, /commands, and what a terminal shows and keeps."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.scripted import FakeLLM, settles, typed, vermilion
from vermilion.errors import ContextLengthExceeded
from vermilion.models.families.family_presets import WITH_BASE
from vermilion.types import Text

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.usefixtures("fake_llm")
def test_chat_remembers_turns_and_reset_forgets_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, "one\n\ntwo\n/reset\nthree\n/exit\nnever asked\n")
    FakeLLM.answers = [settles("1"), settles("2"), settles("3")]
    assert vermilion("chat", "--system", "s") == 0
    turns = [
        [turn["content"] for turn in asked["messages"]] for asked in FakeLLM.asked if "messages" in asked
    ]
    assert turns == [["s", "one"], ["s", "one", "1", "two"], ["s", "three"]]
    assert capsys.readouterr().out == "1\n2\n3\n"


@pytest.mark.usefixtures("fake_llm")
def test_chat_survives_a_stopped_answer_and_a_refused_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, "one\ntwo\nthree\nfour\n")
    FakeLLM.answers = [
        [Text("par"), KeyboardInterrupt()],
        [ContextLengthExceeded(10, 20)],
        [KeyboardInterrupt()],
        settles("end"),
    ]
    assert vermilion("chat") == 0
    turns = [
        [turn["content"] for turn in asked["messages"]] for asked in FakeLLM.asked if "messages" in asked
    ]
    assert turns[-1] == ["one", "par", "four"]
    output = capsys.readouterr()
    assert "maximum context length" in output.err
    assert output.out.endswith("end\n")


@pytest.mark.usefixtures("fake_llm")
def test_commands_are_not_sent_and_unknown_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, "/help\n/resett\n/reset now\n/stats\none\n /etc is a folder\n/stats\n/quit\nnever\n")
    FakeLLM.answers = [settles("1"), settles("2")]
    assert vermilion("chat") == 0
    turns = [asked["messages"][-1]["content"] for asked in FakeLLM.asked if "messages" in asked]
    assert turns == ["one", "/etc is a folder"]
    said = capsys.readouterr().err
    for name in ("/help", "/preset", "/reset", "/stats", "/quit", "/exit"):
        assert name in said
    assert "/resett is no command; /help lists them." in said
    assert "/reset takes nothing behind it." in said
    assert "No answer yet." in said
    assert "2 answers: 12 tokens in" in said and "6 passes · 2.00 tokens per pass" in said
    assert "11 of 8,192 tokens of context" in said


@pytest.mark.usefixtures("fake_llm")
def test_a_preset_holds_from_the_next_turn_and_a_wrong_one_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, "one\n/preset fast\ntwo\n/preset warp\nthree\n/preset\n")
    FakeLLM.answers = [settles("1"), settles("2"), settles("3")]
    assert vermilion("chat") == 0
    used = [asked["decoding"] for asked in FakeLLM.asked if "decoding" in asked]
    assert used == [WITH_BASE["lossless"], WITH_BASE["fast"], WITH_BASE["fast"]]
    said = capsys.readouterr().err
    assert "'warp' is not allowed; allowed: ar, lossless, balanced, fast" in said
    assert said.rstrip().endswith("preset fast; there are ar, lossless, balanced, fast")


class Terminal:
    """A process on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self._main, terminal = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "COLUMNS": "100"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.scripted", *arguments],
            stdin=terminal, stdout=terminal, stderr=terminal, env=environment, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        os.close(terminal)
        self.screen = ""

    def type(self, text: str) -> None:
        os.write(self._main, text.encode())

    def wait_for(self, text: str, after: int = 0, timeout_s: float = 30.0) -> None:
        """Read on until `text` stands on the screen behind its first `after` characters."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self.screen[after:]:
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, f"{text!r} never came; the screen: {self.screen!r}"
            ready, _, _ = select.select([self._main], [], [], left_s)
            if ready:
                self.screen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._read())

    def _read(self) -> str:
        try:
            return os.read(self._main, 4096).decode()
        except OSError:
            raise AssertionError(f"it ended; the screen: {self.screen!r}") from None

    def end(self) -> int:
        """The exit status, once everything is read."""
        try:
            while True:
                self.screen += os.read(self._main, 4096).decode()
        except OSError:  # the other end is closed
            return self.process.wait(30)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main)


@pytest.fixture
def chat() -> Iterator[Terminal]:
    terminal = Terminal("chat", "--preset", "fast")
    yield terminal
    terminal.close()


def test_a_terminal_shows_a_banner_and_ctrl_d_leaves_on_a_line_of_its_own(chat: Terminal) -> None:
    chat.wait_for("> ")
    assert "smollm2-135m-diffusion, preset fast. /help lists the commands.\r\n" in chat.screen
    chat.type("\x04")
    assert chat.end() == 0
    assert chat.screen.endswith("> \r\n")


def test_what_is_typed_during_an_answer_is_neither_echoed_nor_sent(chat: Terminal) -> None:
    chat.wait_for("> ")
    chat.type("one\n")
    chat.wait_for("word2")
    chat.type("impatient\n/quit\n\x04")
    chat.wait_for("tokens per pass")
    chat.wait_for("> ", after=chat.screen.index("tokens per pass"))
    time.sleep(0.3)
    assert chat.process.poll() is None
    assert "impatient" not in chat.screen
    chat.type("/stats\n")
    chat.wait_for("1 answers:")
    chat.type("/quit\n")
    assert chat.end() == 0


def test_ctrl_c_stops_the_answer_and_the_history_brings_the_line_back(chat: Terminal) -> None:
    chat.wait_for("> ")
    chat.type("tell me of owls\n")
    chat.wait_for("word3")
    chat.type("\x03")
    chat.wait_for("stopped")
    at = len(chat.screen)
    chat.wait_for("> ", after=chat.screen.index("stopped"))
    chat.type("\x1b[A")  # the arrow up
    chat.wait_for("tell me of owls", after=at)
    chat.type("\x15/exit\n")  # Ctrl-U empties the line
    assert chat.end() == 0
