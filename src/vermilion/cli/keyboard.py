"""Reads lines from the terminal, and discards what is typed while an answer is shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vermilion.cli.printing import note

PROMPT = "> "


def lines() -> Iterator[str]:
    """What the user types, without blank lines, until the input ends; a terminal has history and editing."""
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        with suppress(ImportError):  # not on Windows
            import readline  # noqa: F401 - gives input() editing and history
    while True:
        try:
            line = _line(at_terminal)
        except EOFError:
            if at_terminal:
                note("")  # what comes next starts on a line of its own
            return
        except KeyboardInterrupt:
            note("\n/quit or Ctrl-D leaves")
            continue
        if line.strip():
            yield line


def _line(at_terminal: bool) -> str:
    if at_terminal and not sys.stdout.isatty():
        # A redirected stdout takes answers only.
        sys.stderr.write(PROMPT)
        sys.stderr.flush()
        return input()
    return input(PROMPT if at_terminal else "")


@contextmanager
def muted() -> Iterator[None]:
    """Discards what is typed inside the context and does not echo it; Ctrl-C still interrupts."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    quiet = [*before]
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(terminal, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        # TCSAFLUSH discards what was typed and not read.
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
