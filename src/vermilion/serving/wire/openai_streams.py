"""The events of a call as chunks. Built from prepared strings: a chunk must cost some ten microseconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vermilion.errors import VermilionError
from vermilion.serving.generation.choices import Choice
from vermilion.serving.generation.tool_calls import ArgumentsDelta, ToolCall, ToolCallReader, ToolCallStart
from vermilion.serving.generation.tools import Toolbox, read_calls
from vermilion.serving.http.error_rendering import openai_error
from vermilion.serving.http.sse import EVENT_STREAM
from vermilion.serving.wire.openai_replies import (
    Head,
    TokenOffsets,
    call_body,
    chat_logprobs,
    completion_logprobs,
    stopped_by,
    usage_body,
)
from vermilion.types import Canvas, CanvasToken, Event, Finish, Text, TokenInfo, Usage

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_FRAGMENT = 256
"""Characters of a call's arguments in one chunk."""
_quote = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class _Stream:
    """What the streams share: the head of every chunk, the usage at the end and `[DONE]`."""

    media_type = EVENT_STREAM
    keep_alive = KEEP_ALIVE

    def __init__(self, head: Head, kind: str, include_usage: bool) -> None:
        self._head = (
            f'data: {{"id":{_quote(head.id)},"object":"{kind}","created":{head.created},'
            f'"model":{_quote(head.model)},"choices":['
        )
        self._usages: dict[int, Usage] = {}
        self._num_prompts = 1
        self._include_usage = include_usage

    def chunk(self, choice: str, more: str = "") -> str:
        """One frame; `choice` and `more` are JSON, the latter begins with a comma."""
        return f"{self._head}{choice}]{more}}}\n\n"

    def close(self) -> bytes:
        if not self._include_usage:
            return DONE
        usage = usage_body([self._usages[index] for index in sorted(self._usages)], self._num_prompts)
        return self.chunk("", f',"usage":{_quote(usage)}').encode() + DONE

    def fail(self, error: VermilionError) -> bytes:
        return b"data: " + json.dumps(openai_error(error)).encode() + b"\n\n" + DONE


class ChatStream(_Stream):
    """Appending chunks: the role, text and the arguments of calls as they settle, the reason it ended."""

    def __init__(
        self, head: Head, include_usage: bool, box: Toolbox | None = None, functions: bool = False
    ) -> None:
        """`functions`: calls are told in their earlier form, one an answer."""
        super().__init__(head, "chat.completion.chunk", include_usage)
        self._functions = functions
        self._begun: set[int] = set()
        self._box = box
        self._readers: dict[int, ToolCallReader] = {}
        self._untold: dict[int, list[TokenInfo]] = {}

    def render(self, index: int, event: Event) -> bytes:
        chunks = ""
        if index not in self._begun:
            self._begun.add(index)
            chunks = self._delta(index, '{"role":"assistant","content":""}')
            if self._box is not None:
                self._readers[index] = self._box.reader()
        if self._box is not None:
            chunks += self._with_calls(index, event, self._readers[index])
        elif isinstance(event, Text) and (event.text or event.tokens):
            logprobs = _quote(chat_logprobs(event.tokens)) if event.tokens else "null"
            chunks += self._delta(index, f'{{"content":{_quote(event.text)}}}', logprobs)
        elif isinstance(event, Finish):
            self._usages[index] = event.usage
            chunks += self._ended(index, event, event.reason)
        return chunks.encode("utf-8", "replace")

    def _with_calls(self, index: int, event: Event, reader: ToolCallReader) -> str:
        finished = isinstance(event, Finish)
        text = event.text if isinstance(event, Text) else ""
        number, deltas = reader.num_calls, list[str]()
        if isinstance(event, Text):
            self._untold.setdefault(index, []).extend(event.tokens)
        for piece in [*reader.push(text), *(reader.finish() if finished else ())]:
            if isinstance(piece, str):
                deltas.append(f'{{"content":{_quote(piece)}}}')
            elif isinstance(piece, ToolCallStart):
                deltas.append(self._form(_begun(number, piece.id, piece.name)))
            elif isinstance(piece, ArgumentsDelta):
                deltas += map(self._form, _fragments(number, piece.text))
            else:
                number += 1
        chunks = "".join(self._delta(index, delta, self._logprobs(index)) for delta in deltas)
        if isinstance(event, Finish):
            self._usages[index] = event.usage
            called = reader.num_calls and event.reason == "stop"
            reason = "function_call" if self._functions else "tool_calls"
            chunks += self._ended(index, event, reason if called else event.reason)
        return chunks

    def _form(self, delta: str) -> str:
        """A call's delta in the form that the client knows."""
        if not self._functions:
            return delta
        (call,) = json.loads(delta)["tool_calls"]
        return _quote({"function_call": call["function"]})

    def _logprobs(self, index: int) -> str:
        """Of the tokens that settled since the last chunk, those of a call's marks among them."""
        tokens = self._untold.pop(index, None)
        return _quote(chat_logprobs(tokens)) if tokens else "null"

    def _ended(self, index: int, event: Finish, reason: str) -> str:
        return self._delta(index, "{}", self._logprobs(index), f'"{reason}"{_stopped_by(event)}')

    def _delta(self, index: int, delta: str, logprobs: str = "null", reason: str = "null") -> str:
        return self.chunk(
            f'{{"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{reason}}}'
        )


def _stopped_by(event: Finish) -> str:
    """Further JSON fields behind the reason."""
    more = stopped_by(event)
    return f",{_quote(more)[1:-1]}" if more else ""


def call_deltas(number: int, call: ToolCall) -> list[str]:
    """A call as deltas: its name first, then its arguments in fragments."""
    return [_begun(number, call.id, call.name), *_fragments(number, call.arguments)]


def _begun(number: int, id: str, name: str) -> str:
    return _quote({"tool_calls": [{"index": number, **call_body(id, name, "")}]})


def _fragments(number: int, arguments: str) -> list[str]:
    pieces = [arguments[i : i + _FRAGMENT] for i in range(0, len(arguments), _FRAGMENT)]
    return [_quote({"tool_calls": [{"index": number, "function": {"arguments": one}}]}) for one in pieces]


class DiffusionStream(_Stream):
    """Replacing chunks: `delta.content` is the whole text after each pass, noise included.

    Settled text is kept for the last frame, which carries the answer, progress 1.0 and the reason; an
    empty closing chunk follows it, as clients of Mercury expect. Calls are deltas before the last frame.
    In the mode `diff` a chunk says what to change in the text before instead of repeating it; in `tokens` it
    also has the tokens that are not as in the frame before: [start, end, state, confidence, pass].
    """

    def __init__(
        self,
        head: Head,
        include_usage: bool,
        num_choices: int,
        box: Toolbox | None = None,
        mode: bool | str | None = True,
        plain: bool = False,
    ) -> None:
        """`plain`: chunks of a plain completion."""
        super().__init__(head, "text_completion" if plain else "chat.completion.chunk", include_usage)
        self._choices = [Choice() for _ in range(num_choices)]
        self._box = box
        self._plain = plain
        self._shown = [""] * num_choices if mode == "diff" else None
        self._tokens: list[tuple[CanvasToken, ...]] | None = [()] * num_choices if mode == "tokens" else None

    def render(self, index: int, event: Event) -> bytes:
        choice = self._choices[index]
        if isinstance(event, Canvas):
            return self._frame(index, event)
        choice.add(event)
        if not isinstance(event, Finish):
            return b""
        self._usages[index] = event.usage
        text, calls = read_calls(choice.text, self._box)
        deltas = [delta for number, call in enumerate(calls) for delta in call_deltas(number, call)]
        begun = "".join(
            self.chunk(f'{{"index":{index},"delta":{delta},"finish_reason":null}}') for delta in deltas
        )
        spans = ((0, len(text)),) if text else ()
        tokens = (
            tuple(token for token in self._tokens[index] if token.end <= len(text)) if self._tokens else ()
        )
        whole = Canvas(text, spans, progress=1.0, pass_number=event.usage.passes, tokens=tokens)
        logprobs = f',"logprobs":{_quote(self._logprobs(choice))}' if choice.tokens else ""
        reason = '"tool_calls"' if calls and event.reason == "stop" else f'"{event.reason}"'
        reason += _stopped_by(event)
        nothing = '"text":""' if self._plain else '"delta":{}'
        closing = self.chunk(f'{{"index":{index},{nothing},"finish_reason":{reason}}}')
        return begun.encode() + self._frame(index, whole, logprobs, reason) + closing.encode()

    def _logprobs(self, choice: Choice) -> dict[str, Any]:
        return (
            completion_logprobs(choice.tokens, TokenOffsets())
            if self._plain
            else chat_logprobs(choice.tokens)
        )

    def _frame(self, index: int, canvas: Canvas, logprobs: str = "", reason: str = "null") -> bytes:
        meta: dict[str, object] = {
            "diffusion_content": True,
            "diffusion_progress": canvas.progress,
            "settled": canvas.settled,
            "masked": canvas.masked,
            "edited": canvas.edited,
            "pass": canvas.pass_number,
        }
        delta = f'"delta":{{"role":"assistant","content":{_quote(canvas.text)},"tool_calls":[]}}'
        if self._plain:
            delta = f'"text":{_quote(canvas.text)}'
        if self._shown is not None:
            meta["diff"] = changed(self._shown[index], canvas.text)
            self._shown[index] = canvas.text
            delta = '"text":""' if self._plain else '"delta":{"role":"assistant"}'
        if self._tokens is not None:
            meta["tokens"] = changed_tokens(self._tokens[index], canvas.tokens)
            self._tokens[index] = canvas.tokens
        return self.chunk(
            f'{{"index":{index},{delta}{logprobs},"finish_reason":{reason}}}',
            f',"diffusion_meta":{_quote(meta)}',
        ).encode("utf-8", "replace")


def changed(before: str, after: str) -> tuple[int, int, str]:
    """(start, end, text): `before[:start] + text + before[end:]` is `after`. In characters (code points)."""
    most = min(len(before), len(after))
    start = next((i for i in range(most) if before[i] != after[i]), most)
    most -= start
    tail = next((i for i in range(most) if before[-1 - i] != after[-1 - i]), most)
    return start, len(before) - tail, after[start : len(after) - tail]


def changed_tokens(before: Sequence[CanvasToken], after: Sequence[CanvasToken]) -> dict[str, object]:
    """`from`: how many leading tokens are the same; `rows`: what stands behind them now."""
    most = min(len(before), len(after))
    # Most are the same objects, which need no look at their fields.
    same = next((i for i in range(most) if before[i] is not after[i] and before[i] != after[i]), most)
    rows = [
        [token.start, token.end, token.state, round(token.confidence, 4), token.pass_number]
        for token in after[same:]
    ]
    return {"from": same, "rows": rows}


class CompletionStream(_Stream):
    """Appending chunks of plain completion; with `delta` each says its text in chat's form as well."""

    def __init__(
        self,
        head: Head,
        include_usage: bool,
        num_choices: int,
        delta: bool = False,
        echoes: Sequence[str] = ("",),
    ) -> None:
        """`echoes` has a text for each prompt that its choices begin with."""
        super().__init__(head, "text_completion", include_usage)
        self._offsets = [TokenOffsets() for _ in range(num_choices)]
        self._delta = delta
        self._num_prompts = len(echoes)
        size = max(1, num_choices // len(echoes))
        self._echoes = {index: echoes[index // size] for index in range(num_choices)}

    def render(self, index: int, event: Event) -> bytes:
        text, logprobs, reason = "", "null", "null"
        if isinstance(event, Text) and (event.text or event.tokens):
            text = event.text
            if event.tokens:
                logprobs = _quote(completion_logprobs(event.tokens, self._offsets[index]))
        elif isinstance(event, Finish):
            self._usages[index] = event.usage
            reason = f'"{event.reason}"{_stopped_by(event)}'
        else:
            return b""
        quoted = _quote(self._echoes.pop(index, "") + text)
        delta = f'"delta":{{"content":{quoted}}},' if self._delta else ""
        return self.chunk(
            f'{{"index":{index},"text":{quoted},{delta}"logprobs":{logprobs},"finish_reason":{reason}}}'
        ).encode("utf-8", "replace")
