"""`vermilion chat`: a conversation in turns, with /commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from vermilion.cli.answer_view import Figures
from vermilion.cli.answering import AnswerSettings, answer, decoding_of, loaded, opening, sampling_of
from vermilion.cli.keyboard import lines
from vermilion.cli.options import AnswerOptions, System, with_options
from vermilion.cli.printing import animated, complain, note
from vermilion.errors import BadParameter, BadRequest, VermilionError
from vermilion.types import Usage

if TYPE_CHECKING:
    from vermilion.engine.llm import LLM

HELP = """\
/preset [NAME]  show or change how answers are decoded
/reset          forget the conversation
/stats          what the answers took so far
/help           this list
/quit, /exit    leave, like Ctrl-D
Ctrl-C stops an answer. A line that starts with a blank is sent even if a / follows."""


@with_options(AnswerOptions)
def chat(system: System = None, *, options: AnswerOptions) -> None:
    """Talk in turns; /help lists what can be typed. Ctrl-C stops an answer, Ctrl-D leaves."""
    with loaded(options) as llm:
        conversation = Conversation(llm, options, system)
        if sys.stdin.isatty():
            note(f"{llm.model.id}, preset {conversation.preset}. /help lists the commands.")
        for line in lines():
            try:
                if not conversation.take(line):
                    break
            except VermilionError as error:
                complain(error)


class Conversation:
    """The messages so far, how to answer, and the cost of the answers."""

    def __init__(self, llm: LLM, options: AnswerOptions, system: str | None) -> None:
        """Raises BadParameter for a preset or a knob that the model does not have."""
        self._llm, self._options, self._system = llm, options, system
        self._settings = AnswerSettings(sampling_of(options), decoding_of(options, llm), json=options.json)
        self._messages = opening(system)
        self._figures: list[Figures] = []
        self.preset = options.preset or llm.model.default_preset

    def take(self, line: str) -> bool:
        """Run a /command or answer a turn; False to leave. Raises our errors and then changes nothing."""
        if line.startswith("/"):
            return self._command(*line.split())
        self._answer(line.strip())
        return True

    def _command(self, name: str, *arguments: str) -> bool:
        if name in ("/quit", "/exit"):
            return False
        commands: dict[str, Callable[..., None]] = {
            "/help": lambda: note(HELP),
            "/preset": self._choose,
            "/reset": self._reset,
            "/stats": self._stats,
        }
        if name not in commands:
            raise BadRequest(
                f"{name} is no command; /help lists them. To send it as text, begin with a blank."
            )
        if arguments and name != "/preset":
            raise BadRequest(f"{name} takes nothing behind it.")
        commands[name](*arguments)
        return True

    def _reset(self) -> None:
        self._messages = opening(self._system)
        note("The conversation is forgotten.")

    def _choose(self, *names: str) -> None:
        if len(names) > 1:
            raise BadParameter("/preset", " ".join(names), "one name")
        if names:
            decoding = decoding_of(self._options, self._llm, names[0])
            self._settings, self.preset = replace(self._settings, decoding=decoding), names[0]
        note(f"preset {self.preset}; there are {', '.join(self._llm.model.presets)}")

    def _stats(self) -> None:
        if not self._figures:
            note("No answer yet.")
            return
        last = self._figures[-1].usage
        usages = [figures.usage for figures in self._figures]
        usage = Usage(
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            passes=sum(usage.passes for usage in usages),
            edits=sum(usage.edits for usage in usages),
        )
        total = Figures(usage, sum(figures.seconds for figures in self._figures), None)
        used = last.prompt_tokens + last.completion_tokens
        note(f"{len(usages)} answers: {total}")
        note(f"The last one ended at {used:,} of {self._llm.model.context_length:,} tokens of context.")

    def _answer(self, text: str) -> None:
        asked = [*self._messages, {"role": "user", "content": text}]
        shown = answer(self._llm, self._llm.chat_prompt(asked), self._settings)
        if shown.figures:
            self._figures.append(shown.figures)
        if not (animated() or self._options.json):
            print(flush=True)
        if shown.text:
            self._messages = [*asked, {"role": "assistant", "content": shown.text}]
