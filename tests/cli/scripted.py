"""A model for the command line that answers from a script.

python -m tests.cli.scripted chat     the command line with a model that writes a word every tenth of a second
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any, ClassVar

import pytest

from vermilion import cli
from vermilion.models.families.family_presets import WITH_BASE
from vermilion.types import Event, Finish, ModelInfo, Sampling, Text, Usage

USAGE = Usage(prompt_tokens=5, completion_tokens=6, passes=3)


class FakeLLM:
    """Gives the next scripted answer and remembers what it was asked; an exception in a script is raised."""

    answers: ClassVar[list[list[Event | BaseException]]]
    asked: ClassVar[list[dict[str, Any]]]
    closed: ClassVar[int]
    pause_s: ClassVar[float] = 0.0

    def __init__(self, model: str, *, config: object) -> None:
        self.model = ModelInfo(
            model, 8192, 100, (2,), 3, presets=WITH_BASE, default_preset="lossless",
            decoders=("ar", "lossless", "relaxed", "threshold"),
        )  # fmt: skip
        self.config = config

    def chat_prompt(self, messages: list[dict[str, str]]) -> list[int]:
        FakeLLM.asked.append({"messages": messages})
        return [len(messages)]

    def stream(
        self, prompt: object, sampling: Sampling, decoding: object, *, suffix: str = "", canvas: bool = False
    ) -> Iterator[Event]:
        asked = {"prompt": prompt, "sampling": sampling, "decoding": decoding, "suffix": suffix}
        FakeLLM.asked.append({**asked, "canvas": canvas, "config": self.config})
        for event in FakeLLM.answers.pop(0):
            if isinstance(event, BaseException):
                raise event
            time.sleep(FakeLLM.pause_s)
            yield event

    def close(self) -> None:
        FakeLLM.closed += 1


def settles(*pieces: str) -> list[Event | BaseException]:
    return [*(Text(piece) for piece in pieces), Finish("stop", USAGE)]


def module() -> ModuleType:
    """What stands in for `vermilion.engine.llm`, with no answers yet."""
    standing_in = ModuleType("vermilion.engine.llm")
    standing_in.LLM = FakeLLM  # type: ignore[attr-defined]
    FakeLLM.answers, FakeLLM.asked, FakeLLM.closed = [], [], 0
    return standing_in


def vermilion(*arguments: str) -> int:
    """The exit status of a command line."""
    try:
        return cli.main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


if __name__ == "__main__":
    import fcntl
    import termios

    from vermilion.cli import pulling

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C of the terminal is for this process
    sys.modules["vermilion.engine.llm"] = module()
    pulling.ensure = lambda model, offline: None
    FakeLLM.pause_s = 0.1
    FakeLLM.answers += [settles(*(f"word{number} " for number in range(24))) for _ in range(9)]
    sys.exit(cli.main(sys.argv[1:]))
