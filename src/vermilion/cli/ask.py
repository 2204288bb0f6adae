"""`vermilion run` and `vermilion complete`: one question, one answer."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vermilion.cli.answering import AnswerSettings, answer, decoding_of, loaded, opening, sampling_of
from vermilion.cli.options import AnswerOptions, System, with_options
from vermilion.cli.printing import print_plain
from vermilion.errors import BadParameter, BadRequest

DEFAULT_COMPLETION_TOKENS = 64
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


@with_options(AnswerOptions)
def run(
    prompt: Annotated[str, typer.Argument(help="What to ask; - or nothing reads it from stdin.")] = "-",
    system: System = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text; no chat template.")] = False,
    *,
    options: AnswerOptions,
) -> None:
    """Answer one prompt."""
    prompt = _piped() if prompt == "-" else prompt
    if not prompt.strip():
        raise BadParameter("PROMPT", prompt, "text that is not blank")
    if raw and system is not None:
        raise BadRequest("--system has no place in --raw text; put it into the prompt.")
    with loaded(options) as llm:
        settings = AnswerSettings(sampling_of(options), decoding_of(options, llm), json=options.json)
        tokens: str | list[int] = prompt if raw else llm.chat_prompt(opening(system, prompt))
        shown = answer(llm, tokens, settings)
    if shown.reason == "abort":
        raise typer.Exit(INTERRUPTED)


@with_options(AnswerOptions)
def complete(
    place: Annotated[str, typer.Argument(help="FILE:LINE, the end of a line, or FILE:LINE:COL.")],
    write: Annotated[bool, typer.Option("--write", help="Put the completion into the file.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show what would change.")] = False,
    *,
    options: AnswerOptions,
) -> None:
    """Complete a file at a cursor."""
    from vermilion.cli import cursor

    here = cursor.parse(place)
    if not here.text.strip():
        raise BadRequest(f"{here.path}: there is no text to go by.")
    with loaded(options) as llm:
        settings = AnswerSettings(
            sampling_of(options, DEFAULT_COMPLETION_TOKENS),
            decoding_of(options, llm),
            suffix=here.after,
            json=options.json,
            quiet=write or diff,
        )
        shown = answer(llm, here.before, settings)
    if shown.reason == "abort":
        raise typer.Exit(INTERRUPTED)
    if diff:
        print_plain(here.diff(shown.text))
    if write:
        here.write(shown.text)


def _piped() -> str:
    if sys.stdin.isatty():
        raise BadRequest("No prompt. Give one, as in: vermilion run 'Why is the sky blue?'")
    return sys.stdin.read()
