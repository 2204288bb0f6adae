"""The events of a request folded into whole answers."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field
from time import perf_counter

from vermilion.serving.generation.events import EventStream
from vermilion.types import Event, Finish, FinishReason, Text, TokenInfo, Usage


@dataclass(slots=True)
class Choice:
    """One answer as far as it has come."""

    texts: list[str] = field(default_factory=list)
    tokens: list[TokenInfo] = field(default_factory=list)
    reason: FinishReason = "stop"
    usage: Usage = field(default_factory=Usage)
    stop_string: str = ""
    repetition: bool = False
    fit: float | None = None
    started_s: float = field(default_factory=perf_counter)
    """On the clock of `perf_counter`, as the two below."""
    first_text_s: float = 0.0
    ended_s: float = 0.0

    def add(self, event: Event) -> None:
        if isinstance(event, Text):
            self.first_text_s = self.first_text_s or perf_counter()
            self.texts.append(event.text)
            self.tokens.extend(event.tokens)
        elif isinstance(event, Finish):
            self.reason, self.usage, self.stop_string = event.reason, event.usage, event.stop_string
            self.repetition, self.fit = event.repetition, event.fit
            self.ended_s = perf_counter()
            self.first_text_s = self.first_text_s or self.ended_s

    @property
    def prompt_s(self) -> float:
        """From the request to the first settled text."""
        return self.first_text_s - self.started_s

    @property
    def text_s(self) -> float:
        """From the first settled text to the end."""
        return self.ended_s - self.first_text_s

    @property
    def text(self) -> str:
        return "".join(self.texts)


def repeated(ended: Choice | Finish) -> dict[str, bool]:
    """The field, in every protocol, that tells an answer stopped for repeating itself from one too long."""
    return {"repetition": True} if ended.repetition else {}


async def fold(answers: EventStream, num_choices: int) -> list[Choice]:
    """The whole answers, in the order of their requests. Raises what `answers` raises."""
    choices = [Choice() for _ in range(num_choices)]
    async with aclosing(answers):
        async for arrival in answers:
            if arrival:
                choices[arrival[0]].add(arrival[1])
    return choices
