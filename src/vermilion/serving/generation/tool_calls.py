"""Tool calls read out of a text, however it is cut into pieces.

The form is that of Hermes and Qwen: `<tool_call>`, one JSON object with name and arguments, `</tool_call>`.
A text that merely looks like a call becomes one only if it is whole, names an offered tool and has JSON
arguments, so no client ever sees half a call that the model did not mean. Where a grammar holds the answer to
calls, all of that is sure from the beginning, and arguments are told as they settle.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from vermilion.data.conversations import CALL_BEGIN, CALL_END
from vermilion.types import Event, Finish, Text

_HEAD = re.compile(CALL_BEGIN + r'\s*\{\s*"name":\s*"([^"\\<]*)"\s*,\s*"arguments":\s*(?=\{)')


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """The first that is told of a call; its arguments follow."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """The next piece of the arguments of the call that has begun."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The last that is told of a call: all of it."""

    id: str
    name: str
    arguments: str
    """One JSON object, as text."""
    whole: bool = True
    """False where the answer ended in the midst of the arguments."""


Piece = str | ToolCallStart | ArgumentsDelta | ToolCall
"""What an answer is told in: text, or a call's beginning, its arguments in pieces, its end."""


@dataclass(slots=True)
class _Open:
    """A call whose arguments are being told."""

    id: str
    name: str
    told: list[str] = field(default_factory=list)
    depth: int = 0
    quoted: bool = False
    escaped: bool = False

    def end(self, text: str) -> int:
        """Where in `text` the arguments end; -1 where they go on behind it."""
        for at, letter in enumerate(text):
            if self.escaped:
                self.escaped = False
            elif self.quoted:
                self.escaped, self.quoted = letter == "\\", letter != '"'
            elif letter == '"':
                self.quoted = True
            elif letter in "{[":
                self.depth += 1
            elif letter in "}]":
                self.depth -= 1
                if self.depth == 0:
                    return at + 1
        return -1

    def call(self, whole: bool) -> ToolCall:
        return ToolCall(self.id, self.name, "".join(self.told), whole)


class ToolCallReader:
    """Text in, text and calls out."""

    def __init__(self, names: frozenset[str], held: bool = False) -> None:
        """`names` may be called; `held` says that a grammar holds the answer to calls of them."""
        self._names = names
        self._grammar = held
        self._held = ""
        self._open: _Open | None = None
        self._closing = False
        self._content = False
        self.num_calls = 0

    def push(self, text: str) -> list[Piece]:
        """What the text so far allows to be told, in order."""
        self._held += text
        out: list[Piece] = []
        while self._held and self._step(out):
            pass
        return out

    def _step(self, out: list[Piece]) -> bool:
        """Read one thing off the held text; False where more of it is needed."""
        if self._open is not None:
            return self._argue(out, self._open)
        if self._closing:
            return self._close()
        start = self._held.find(CALL_BEGIN)
        if start < 0:
            kept = _overlap(self._held, CALL_BEGIN)
            # White space before a call is not worth a chunk; it stays until something follows.
            safe = self._held[: len(self._held) - kept]
            told = safe if kept == 0 and safe.strip() else safe.rstrip()
            self._tell(out, told)
            self._held = self._held[len(told) :]
            return False
        self._tell(out, self._held[:start].rstrip())
        self._held = self._held[start:]
        head = _HEAD.match(self._held) if self._grammar else None
        if head is not None and head[1] in self._names:
            self._open = _Open(_new_id(), head[1])
            out.append(ToolCallStart(self._open.id, self._open.name))
            self._held = self._held[head.end() :]
            return True
        return self._whole(out)

    def _argue(self, out: list[Piece], call: _Open) -> bool:
        """Tell more of the arguments."""
        end = call.end(self._held)
        piece, self._held = (self._held, "") if end < 0 else (self._held[:end], self._held[end:])
        call.told.append(piece)
        out.append(ArgumentsDelta(piece))
        if end >= 0:
            out.append(call.call(True))
            self._open, self._closing = None, True
            self.num_calls += 1
        return True

    def _close(self) -> bool:
        """Skip what stands between the arguments and the end of their call."""
        end = self._held.find(CALL_END)
        if end >= 0:
            self._held, self._closing = self._held[end + len(CALL_END) :], False
        return end >= 0

    def _whole(self, out: list[Piece]) -> bool:
        """Tell the call that the held text begins with, if it is whole."""
        end = self._held.find(CALL_END)
        if end < 0:
            return False
        text, self._held = self._held[: end + len(CALL_END)], self._held[end + len(CALL_END) :]
        call = self._read(text)
        if call is None:
            self._tell(out, text)
        else:
            out += [ToolCallStart(call.id, call.name), ArgumentsDelta(call.arguments), call]
            self.num_calls += 1
        return True

    def finish(self) -> list[Piece]:
        """What was held back, once the text has ended. Half a call that was not told is dropped: the reason
        says `length`."""
        rest, self._held = self._held, ""
        if self._open is not None:
            return [self._open.call(False)]
        out: list[Piece] = []
        if not self._closing and CALL_BEGIN not in rest and not (self.num_calls and not rest.strip()):
            self._tell(out, rest)
        return out

    def _tell(self, out: list[Piece], text: str) -> None:
        if not self._content and self.num_calls == 0 and not text.strip():
            return
        if text:
            self._content = True
            out.append(text)

    def _read(self, whole: str) -> ToolCall | None:
        try:
            said = json.loads(whole[len(CALL_BEGIN) : -len(CALL_END)])
            name, arguments = said["name"], said["arguments"]
        except (ValueError, KeyError, TypeError):
            return None
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, dict):
            return None
        return ToolCall(_new_id(), name, json.dumps(arguments, ensure_ascii=False))


def pieces_of(event: Event, reader: ToolCallReader | None) -> list[Piece]:
    """What an event adds to a reply: its text, or what `reader` makes of it."""
    text = event.text if isinstance(event, Text) else ""
    if reader is None:
        return [text] if text else []
    return reader.push(text) + (reader.finish() if isinstance(event, Finish) else [])


def together(pieces: Iterable[Piece]) -> tuple[str, list[ToolCall]]:
    """The text beside the calls of a whole answer, and the calls that are whole."""
    listed = list(pieces)
    calls = [piece for piece in listed if isinstance(piece, ToolCall) and piece.whole]
    return "".join(piece for piece in listed if isinstance(piece, str)), calls


def _new_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
