"""What a person sees while an answer settles."""

from __future__ import annotations

import io
import random

import pytest
from rich.console import Console

from vermilion.cli.answer_view import AnswerView, Figures, neutralise, rows, styled
from vermilion.types import Canvas, Finish, Text, Usage


def recording(width: int = 20, height: int = 6) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, height=height, color_system="standard"
    )


class Screen:
    """The least terminal that understands what rich's live display sends: text, CR, LF, up, erase line."""

    def __init__(self, sent: str, height: int) -> None:
        self.lines: list[str] = [""]
        row = column = 0
        position = 0
        while position < len(sent):
            letter = sent[position]
            if letter == "\x1b":
                end = position + 2
                while not sent[end].isalpha():
                    end += 1
                if sent[end] == "A":
                    moved = int(sent[position + 2 : end] or 1)
                    # A real cursor stops at the top of the screen; what scrolled off cannot be erased.
                    row = max(row - moved, len(self.lines) - height, 0)
                elif sent[end] == "K":
                    self.lines[row] = ""
                position = end + 1
                continue
            if letter == "\n":
                row, column = row + 1, 0
                if row == len(self.lines):
                    self.lines.append("")
            elif letter == "\r":
                column = 0
            else:
                line = self.lines[row].ljust(column)
                self.lines[row] = line[:column] + letter + line[column + 1 :]
                column += 1
            position += 1

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n")


def sent_to(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_canvas_shows_masked_filled_settled_and_edited_apart() -> None:
    canvas = Canvas("one two six ten", settled=((0, 4), (12, 15)), masked=((8, 11),), edited=((12, 15),))
    console = recording()
    console.print(styled(canvas))
    assert sent_to(console) == "one \x1b[2mtwo ░░░ \x1b[0m\x1b[4;33mten\x1b[0m\n"


def test_a_masked_newline_does_not_break_the_row() -> None:
    assert styled(Canvas("a\nb", masked=((1, 3),))).plain == "a░░"


@pytest.mark.parametrize(
    "hostile",
    ["\x1b[2J", "\x1b]0;title\x07", "a\rb", "\x9b31m", "\u202eright to left", "\x00", "\x7f", "\u2028"],
)
def test_no_control_character_reaches_the_terminal(hostile: str) -> None:
    console = recording(width=60)
    with AnswerView(console, min_interval_s=0) as view:
        view.show(Canvas(hostile, masked=((0, 1),)))
        view.show(Canvas(hostile))
        view.show(Text(hostile))
        view.show(Finish("stop", Usage()))
    drawn = Screen(sent_to(console), 6).text
    assert drawn == neutralise(hostile)
    assert len(drawn) == len(hostile)
    assert all(letter.isprintable() for letter in drawn)


def test_text_keeps_its_newlines_and_tabs_when_neutralised() -> None:
    assert neutralise("def f():\n\treturn 'é 漢 🙂'\n") == "def f():\n\treturn 'é 漢 🙂'\n"


def test_rows_wrap_at_words_and_split_what_is_wider_than_a_row() -> None:
    text = "the quick brown fox\nabcdefghijklmnop 漢字漢字漢字"
    assert [text[start:end] for start, end in rows(text, 10)] == [
        "the quick ",
        "brown fox\n",
        "abcdefghij",
        "klmnop ",
        "漢字漢字漢",
        "字",
    ]


def test_rows_cover_any_text_without_gap_or_overlap() -> None:
    letters = random.Random(0)
    for _ in range(200):
        text = "".join(letters.choices("ab 漢\n\t", k=40))
        spans = rows(text, 7)
        assert "".join(text[start:end] for start, end in spans) == text
        assert all(end > start for start, end in spans)


def answer(text: str, block: int) -> list[Canvas | Text | Finish]:
    """The events of an answer that settles `block` characters at a time, guessing the next ones first."""
    events: list[Canvas | Text | Finish] = []
    for start in range(0, len(text), block):
        end = min(start + block, len(text))
        guess = text[:start] + "?" * (end - start)
        events.append(Canvas(guess, settled=((0, start),), masked=((start, end),)))
        events.append(Canvas(text[:end], settled=((0, start),)))
        events.append(Text(text[start:end]))
    return [*events, Finish("stop", Usage())]


@pytest.mark.parametrize("block", [1, 7, 40])
def test_a_long_answer_scrolls_without_losing_or_repeating_a_row(block: int) -> None:
    text = "\n".join(f"line {number} " + "word " * (number % 5) + "end" for number in range(30))
    console = recording(width=20, height=6)
    with AnswerView(console, min_interval_s=0) as view:
        for event in answer(text, block):
            view.show(event)
    expected = [text[start:end].rstrip() for start, end in rows(text, 20)]
    assert Screen(sent_to(console), 6).text.split("\n") == expected


def test_one_endless_paragraph_never_outgrows_the_screen() -> None:
    text = "word " * 200
    console = recording(width=20, height=6)
    with AnswerView(console, min_interval_s=0) as view:
        for event in answer(text, 8):
            view.show(event)
    assert Screen(sent_to(console), 6).text.replace("\n", " ").split() == ["word"] * 200


def test_a_guess_taller_than_the_screen_shows_its_last_rows() -> None:
    console = recording(width=20, height=6)
    with AnswerView(console, min_interval_s=0) as view:
        view.show(Canvas("\n".join(f"row {number}" for number in range(12))))
        shown = Screen(sent_to(console), 6).text
    assert shown.split("\n") == [f"row {number}" for number in range(7, 12)]
    assert Screen(sent_to(console), 6).text == ""


def test_stopping_midway_keeps_what_settled_and_erases_the_guess() -> None:
    console = recording()
    with pytest.raises(KeyboardInterrupt), AnswerView(console, min_interval_s=0) as view:
        view.show(Text("kept"))
        view.show(Canvas("kept guess", settled=((0, 4),)))
        raise KeyboardInterrupt
    assert Screen(sent_to(console), 6).text == "kept"


def test_text_skipped_by_the_frame_limit_is_printed_in_the_end() -> None:
    console = recording()
    with AnswerView(console, min_interval_s=3600) as view:
        for event in answer("all of it\narrives", 3):
            view.show(event)
    assert Screen(sent_to(console), 6).text == "all of it\narrives"


def test_figures_count_every_pass_and_leave_out_what_did_not_happen() -> None:
    usage = Usage(completion_tokens=60, passes=24, edits=2)
    assert str(Figures(usage, seconds=2.0, first_text_s=0.25)) == (
        "60 tokens in 2.00 s · 30.0 tokens/s · 24 passes · 2.50 tokens per pass · 2 edits"
        " · first text after 0.25 s"
    )
    assert str(Figures(Usage(), seconds=0.5, first_text_s=None)) == (
        "0 tokens in 0.50 s · 0.0 tokens/s · 0 passes · 0.00 tokens per pass"
    )
