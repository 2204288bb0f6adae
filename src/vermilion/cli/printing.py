"""Output of the commands: answers on stdout, everything else on stderr."""

from __future__ import annotations

import sys

from rich.console import Console

from vermilion.cli.answer_view import neutralise
from vermilion.errors import VermilionError


def print_plain(text: str) -> None:
    """Text for stdout: exact in a pipe or file, harmless on a terminal."""
    sys.stdout.write(neutralise(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def console() -> Console:
    return Console(highlight=False)


def animated() -> bool:
    terminal = console()
    return terminal.is_terminal and not terminal.is_dumb_terminal


def errors() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    errors().print(text, style="dim", markup=False)


def complain(error: VermilionError) -> None:
    errors().print(f"Error: {neutralise(str(error))}", style="red", markup=False)
