"""Draws an answer on a terminal while it is denoised.

Settled text is printed for good, row by row, and scrolls like any output; only the tail, where positions are
still masked or may change, is redrawn. Masked positions are ░ cells, a filled position is dim until it
settles, one that revision changed is underlined in yellow.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.text import Text as Styled

from vermilion.types import Canvas, Event, Finish, Span, Text, Usage

MASK_CELL = "░"
FILLED_STYLE = "dim"
EDITED_STYLE = "yellow underline"
TAB_CELLS = 4

# All that a terminal could obey or that would reorder a line; newline and tab are laid out here.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_PIECE = re.compile(r"\n|[^\S\n]+|\S+")


def neutralise(text: str) -> str:
    """`text`, as long as it was, with control, escape and bidirectional characters made visible."""
    return _UNSAFE.sub(lambda match: _picture(ord(match[0])), text)


def _picture(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def styled(canvas: Canvas) -> Styled:
    """The whole canvas with a style for each state; tabs are kept."""
    text = list(neutralise(canvas.text))
    for start, end in canvas.masked:
        text[start:end] = MASK_CELL * (min(end, len(text)) - start)
    drawn = Styled("".join(text), style=FILLED_STYLE, end="")
    for start, end in canvas.settled:
        drawn.stylize("not dim", start, end)
    for start, end in canvas.edited:
        drawn.stylize(EDITED_STYLE, start, end)
    return drawn


def rows(text: str, width: int) -> list[Span]:
    """The half-open ranges of the rows `text` takes in `width` cells, wrapped at words where it can.

    Greedy from the left: where a row ends depends only on the text up to the end of the row after it.
    """
    spans: list[Span] = []
    start = cells = 0
    for begin, piece in _pieces(text, width):
        if piece == "\n":
            spans.append((start, begin + 1))
            start, cells = begin + 1, 0
            continue
        piece_cells = sum(TAB_CELLS if letter == "\t" else cell_len(letter) for letter in piece)
        if cells and cells + piece_cells > width and not piece.isspace():
            spans.append((start, begin))
            start, cells = begin, 0
        cells += piece_cells
    if start < len(text):
        spans.append((start, len(text)))
    return spans


def _pieces(text: str, width: int) -> Iterator[tuple[int, str]]:
    """Words, gaps and newlines with their offsets; a word wider than a row comes in parts that fit."""
    for match in _PIECE.finditer(text):
        piece, begin = match[0], match.start()
        if piece.isspace() or cell_len(piece) <= width:
            yield begin, piece
            continue
        part = begin
        for position in range(begin, match.end()):
            if position > part and cell_len(text[part : position + 1]) > width:
                yield part, text[part:position]
                part = position
        yield part, text[part : match.end()]


class AnswerView:
    """Shows the events of one answer on a terminal; a context manager around the loop over them.

    `min_interval_s` bounds how often the tail is redrawn; no settled text is ever lost to it.
    """

    def __init__(self, console: Console, min_interval_s: float = 0.03) -> None:
        self._console = console
        self._least_interval_s = min_interval_s
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._settled = ""
        self._printed = 0  # characters of the settled text that are on the screen for good
        self._canvas = Canvas("")
        self._drawn_s = float("-inf")

    def __enter__(self) -> AnswerView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Prints whatever settled and takes the rest of the canvas off the screen, also after Ctrl-C."""
        self._live.update(Styled(""), refresh=True)
        self._live.stop()
        rest = self._settled[self._printed :]
        if rest:
            self._print(rest)

    def show(self, event: Event) -> None:
        if isinstance(event, Text):
            self._settled += neutralise(event.text)
        elif isinstance(event, Canvas):
            self._canvas = event
        else:
            return
        now_s = time.monotonic()
        if now_s - self._drawn_s >= self._least_interval_s:
            self._drawn_s = now_s
            self._draw()

    def _draw(self) -> None:
        tail = self._tail()
        spans = rows(tail.plain, self._console.width)
        final = _num_final(spans, len(self._settled) - self._printed, tail.plain)
        if final:
            end = spans[final - 1][1]
            self._print(self._settled[self._printed : self._printed + end])
            self._printed += end
        # One line less than the screen, so that redrawing never scrolls what it must erase.
        shown = spans[final:][-max(1, self._console.height - 1) :]
        self._live.update(Styled("\n", end="").join(_row(tail, span) for span in shown), refresh=True)

    def _tail(self) -> Styled:
        """What is not printed yet: the canvas, or the settled text where that has run ahead of it."""
        whole = styled(self._canvas)
        if not neutralise(self._canvas.text).startswith(self._settled):
            whole = Styled(self._settled, end="")
        return whole[self._printed :] if self._printed < len(whole) else Styled("", end="")

    def _print(self, text: str) -> None:
        for span in rows(text, self._console.width):
            self._console.print(_row(Styled(text), span), soft_wrap=True, highlight=False)


def _row(text: Styled, span: Span) -> Styled:
    start, end = span
    end -= text.plain[end - 1] == "\n"
    row = text[start:end] if end > start else Styled("")
    row.end = "\n"
    row.expand_tabs(TAB_CELLS)
    row.rstrip()
    return row


def _num_final(spans: list[Span], settled: int, text: str) -> int:
    """How many leading rows can no longer change, given the first `settled` characters are settled."""
    final = 0
    for row, (_, end) in enumerate(spans):
        ended = text[end - 1] == "\n" and end <= settled
        followed = row + 1 < len(spans) and spans[row + 1][1] <= settled
        if not (ended or followed):
            break
        final = row + 1
    return final


@dataclass(frozen=True, slots=True)
class Figures:
    """The cost and wall time of one answer, the prefill included."""

    usage: Usage
    seconds: float
    first_text_s: float | None
    """Until the first settled text; None when there was none."""

    def __str__(self) -> str:
        usage = self.usage
        parts = [
            f"{usage.completion_tokens} tokens in {self.seconds:.2f} s",
            f"{usage.completion_tokens / max(self.seconds, 1e-9):.1f} tokens/s",
            f"{usage.passes} passes",
            f"{usage.tokens_per_pass:.2f} tokens per pass",
        ]
        if usage.edits:
            parts.append(f"{usage.edits} edits")
        if self.first_text_s is not None:
            parts.append(f"first text after {self.first_text_s:.2f} s")
        return " · ".join(parts)


@dataclass(slots=True)
class Stopwatch:
    """Follows the events of one answer and gives its figures."""

    started_s: float
    first_text_s: float | None = None

    @classmethod
    def start(cls) -> Stopwatch:
        return cls(time.monotonic())

    def see(self, event: Event) -> None:
        if self.first_text_s is None and isinstance(event, Text) and event.text:
            self.first_text_s = time.monotonic() - self.started_s

    def figures(self, finish: Finish) -> Figures:
        return Figures(finish.usage, time.monotonic() - self.started_s, self.first_text_s)
