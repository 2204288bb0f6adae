"""The events of a call as chunks. Built from prepared strings: a chunk must cost some ten microseconds."""

from __future__ import annotations

import json

from vermilion.errors import VermilionError
from vermilion.serving.errors import openai_error
from vermilion.serving.replies import Choice, Head, chat_logprobs, completion_logprobs, usage_body
from vermilion.serving.sse import EVENT_STREAM
from vermilion.types import Canvas, Event, Finish, Text, Usage

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

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
        self._include_usage = include_usage

    def chunk(self, choice: str, more: str = "") -> str:
        """One frame; `choice` and `more` are JSON, the latter begins with a comma."""
        return f"{self._head}{choice}]{more}}}\n\n"

    def close(self) -> bytes:
        if not self._include_usage:
            return DONE
        usage = usage_body([self._usages[index] for index in sorted(self._usages)])
        return self.chunk("", f',"usage":{_quote(usage)}').encode() + DONE

    def fail(self, error: VermilionError) -> bytes:
        return b"data: " + json.dumps(openai_error(error)).encode() + b"\n\n" + DONE


class ChatStream(_Stream):
    """Appending chunks: the role, text as it settles, the reason it ended."""

    def __init__(self, head: Head, include_usage: bool) -> None:
        super().__init__(head, "chat.completion.chunk", include_usage)
        self._begun: set[int] = set()

    def render(self, index: int, event: Event) -> bytes:
        chunks = "" if index in self._begun else self._delta(index, '{"role":"assistant","content":""}')
        self._begun.add(index)
        if isinstance(event, Text) and (event.text or event.tokens):
            logprobs = _quote(chat_logprobs(event.tokens)) if event.tokens else "null"
            chunks += self._delta(index, f'{{"content":{_quote(event.text)}}}', logprobs)
        elif isinstance(event, Finish):
            self._usages[index] = event.usage
            chunks += self._delta(index, "{}", reason=f'"{event.reason}"')
        return chunks.encode("utf-8", "replace")

    def _delta(self, index: int, delta: str, logprobs: str = "null", reason: str = "null") -> str:
        return self.chunk(
            f'{{"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{reason}}}'
        )


class DiffusionStream(_Stream):
    """Replacing chunks: `delta.content` is the whole text after each pass, noise included.

    Settled text is kept for the last frame, which carries the answer, progress 1.0 and the reason; an
    empty closing chunk follows it, as clients of Mercury expect.
    """

    def __init__(self, head: Head, include_usage: bool, num_choices: int) -> None:
        super().__init__(head, "chat.completion.chunk", include_usage)
        self._choices = [Choice() for _ in range(num_choices)]

    def render(self, index: int, event: Event) -> bytes:
        choice = self._choices[index]
        if isinstance(event, Canvas):
            return self._frame(index, event)
        choice.add(event)
        if not isinstance(event, Finish):
            return b""
        self._usages[index] = event.usage
        text = choice.text
        whole = Canvas(text, ((0, len(text)),) if text else (), progress=1.0, pass_number=event.usage.passes)
        logprobs = f',"logprobs":{_quote(chat_logprobs(choice.tokens))}' if choice.tokens else ""
        reason = f'"{event.reason}"'
        closing = self.chunk(f'{{"index":{index},"delta":{{}},"finish_reason":{reason}}}')
        return self._frame(index, whole, logprobs, reason) + closing.encode()

    def _frame(self, index: int, canvas: Canvas, logprobs: str = "", reason: str = "null") -> bytes:
        meta = {
            "diffusion_content": True,
            "diffusion_progress": canvas.progress,
            "settled": canvas.settled,
            "masked": canvas.masked,
            "edited": canvas.edited,
            "pass": canvas.pass_number,
        }
        delta = f'{{"role":"assistant","content":{_quote(canvas.text)},"tool_calls":[]}}'
        return self.chunk(
            f'{{"index":{index},"delta":{delta}{logprobs},"finish_reason":{reason}}}',
            f',"diffusion_meta":{_quote(meta)}',
        ).encode("utf-8", "replace")


class CompletionStream(_Stream):
    """Appending chunks of plain completion; with `delta` each says its text in chat's form as well."""

    def __init__(self, head: Head, include_usage: bool, num_choices: int, delta: bool = False) -> None:
        super().__init__(head, "text_completion", include_usage)
        self._offsets = [0] * num_choices
        self._delta = delta

    def render(self, index: int, event: Event) -> bytes:
        text, logprobs, reason = "", "null", "null"
        if isinstance(event, Text) and (event.text or event.tokens):
            text = event.text
            if event.tokens:
                logprobs = _quote(completion_logprobs(event.tokens, self._offsets[index]))
            self._offsets[index] += len(text)
        elif isinstance(event, Finish):
            self._usages[index] = event.usage
            reason = f'"{event.reason}"'
        else:
            return b""
        quoted = _quote(text)
        delta = f'"delta":{{"content":{quoted}}},' if self._delta else ""
        return self.chunk(
            f'{{"index":{index},"text":{quoted},{delta}"logprobs":{logprobs},"finish_reason":{reason}}}'
        ).encode("utf-8", "replace")
