"""A cursor in a text file: the text before and after it, and inserting a completion there."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vermilion.errors import BadParameter, BadRequest
from vermilion.text import line_end, split_lines

MAX_BEFORE_CHARACTERS = 6000
MAX_AFTER_CHARACTERS = 2000
"""What of a long file the model is shown: enough for the surroundings, quick to read on a CPU."""

_PLACE = re.compile(r"(?P<path>.+?):(?P<line>\d+)(?::(?P<column>\d+))?")


@dataclass(frozen=True, slots=True)
class FileCursor:
    """A place between two characters of a file's text, which keeps its own line endings."""

    path: Path
    text: str
    offset: int

    @property
    def before(self) -> str:
        """The text before the cursor; if long, its end from the start of a line."""
        start = self.offset - MAX_BEFORE_CHARACTERS
        if start <= 0:
            return self.text[: self.offset]
        line = self.text.find("\n", start, self.offset) + 1
        return self.text[line or start : self.offset]

    @property
    def after(self) -> str:
        """The text after the cursor; if long, its beginning up to the end of a line."""
        end = self.offset + MAX_AFTER_CHARACTERS
        if end >= len(self.text):
            return self.text[self.offset :]
        line = self.text.rfind("\n", self.offset, end) + 1
        return self.text[self.offset : line or end]

    def filled(self, completion: str) -> str:
        """The whole text with the completion in it, in the file's line endings."""
        end = next((end for line in split_lines(self.text) if (end := line_end(line))), "\n")
        completion = completion.replace("\r\n", "\n").replace("\n", end)
        return self.text[: self.offset] + completion + self.text[self.offset :]

    def diff(self, completion: str) -> str:
        """The change as a unified diff; empty if there is none."""
        old, new = map(split_lines, (self.text, self.filled(completion)))
        name = self.path.as_posix().lstrip("/")
        lines = difflib.unified_diff(old, new, f"a/{name}", f"b/{name}")
        return "".join(map(_diff_line, lines))

    def write(self, completion: str) -> None:
        """Replaces the file atomically and keeps its mode. Raises BadRequest if it was changed meanwhile."""
        target = self.path.resolve()
        if _read(target) != self.text:
            raise BadRequest(f"{self.path}: changed while the completion was made; nothing was written.")
        try:
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", newline="", dir=target.parent, prefix=f".{target.name}.", delete=False
            ) as file:
                file.write(self.filled(completion))
            shutil.copymode(target, file.name)
            os.replace(file.name, target)
        except OSError as error:
            raise BadRequest(f"{self.path}: cannot be written: {error.strerror}.") from None


def _diff_line(line: str) -> str:
    """Ended by LF, as the format wants it, also in a file whose lines end in CR alone."""
    end = line_end(line)
    if not end:
        return f"{line}\n\\ No newline at end of file\n"
    return f"{line[:-1]}\n" if end == "\r" else line


def parse(place: str) -> FileCursor:
    """The cursor at "FILE:LINE" (the end of that line) or "FILE:LINE:COL", both counted from 1.

    COL 1 stands before the first character. Raises BadParameter and BadRequest.
    """
    match = _PLACE.fullmatch(place)
    if not match:
        raise BadParameter("place", place, "FILE:LINE or FILE:LINE:COL", "For example app.py:12:9.")
    path, line = Path(match["path"]), int(match["line"])
    text = _read(path)
    lines = split_lines(text)
    if not lines or line_end(lines[-1]):
        lines.append("")
    if not 1 <= line <= len(lines):
        raise BadParameter("LINE", line, f"1 to {len(lines)}", f"{path} has that many lines.")
    width = len(lines[line - 1].removesuffix(line_end(lines[line - 1])))
    column = int(match["column"]) if match["column"] else width + 1
    if not 1 <= column <= width + 1:
        raise BadParameter("COL", column, f"1 to {width + 1}", f"Line {line} has {width} characters.")
    return FileCursor(path, text, sum(map(len, lines[: line - 1])) + column - 1)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise BadRequest(f"{path}: no such file.") from None
    except UnicodeDecodeError:
        raise BadRequest(f"{path}: not a UTF-8 text file.") from None
    except OSError as error:
        raise BadRequest(f"{path}: cannot be read: {error.strerror}.") from None
