"""The stream of an upstream's answer, read into the events of an engine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from vermilion.data.conversations import CALL_BEGIN, CALL_END
from vermilion.serving.remote.estimated_tokens import num_tokens
from vermilion.serving.remote.remote_errors import UpstreamFailed
from vermilion.types import Canvas, Event, Finish, FinishReason, Request, Text, TokenInfo, Usage


class RemoteAnswer:
    """Of one answer: chunks in, events out. Calls become the text that the service reads calls from."""

    def __init__(self, request: Request) -> None:
        self._estimate = Usage(prompt_tokens=len(request.prompt) + len(request.suffix))
        self._usage: Usage | None = None
        self._text = ""
        self._canvas = ""
        self._call: int | None = None
        self._arguments = False
        self._reason = ""
        self._stop_string = ""

    def read(self, data: str) -> Iterator[Event]:
        """The data of one server-sent event. Raises `UpstreamFailed` for one that says so."""
        try:
            chunk = json.loads(data)
        except ValueError:
            raise UpstreamFailed("it sent what is no JSON") from None
        if not isinstance(chunk, dict) or chunk.get("error"):
            raise UpstreamFailed(f"it ended the stream: {str(data)[:200]}")
        if chunk.get("usage"):
            self._usage = _usage(chunk["usage"])
        for choice in chunk.get("choices") or ():
            yield from self._choice(choice, chunk.get("diffusion_meta"))

    def _choice(self, choice: Mapping[str, Any], meta: Mapping[str, Any] | None) -> Iterator[Event]:
        delta = choice.get("delta") or {}
        said = choice.get("text") if "text" in choice else delta.get("content")
        for call in delta.get("tool_calls") or ():
            yield self._told(self._called(call))
        if meta is not None:
            self._canvas = said if isinstance(said, str) else self._canvas
            if not choice.get("finish_reason"):
                yield _shown(self._canvas, meta)
        elif said:
            yield self._told(str(said), _tokens(choice.get("logprobs")))
        if choice.get("finish_reason"):
            self._reason = str(choice["finish_reason"])
            self._stop_string = str(choice.get("stop_reason") or "")

    def finish(self) -> Iterator[Event]:
        """The last events. Raises `UpstreamFailed` for an answer that was cut off."""
        if not self._reason:
            raise UpstreamFailed("its stream ended in the middle of an answer")
        if self._canvas and not self._text:
            yield self._told(self._canvas)
        if self._call is not None:
            yield self._told(self._closed())
        reason: FinishReason = "length" if self._reason == "length" else "stop"
        yield Finish(reason, self._usage or self.spent, stop_string=self._stop_string)

    @property
    def spent(self) -> Usage:
        """What the answer has cost so far, estimated."""
        return Usage(
            self._estimate.prompt_tokens, 0, num_tokens(self._text), passes=max(1, num_tokens(self._text))
        )

    def _told(self, text: str, tokens: tuple[TokenInfo, ...] = ()) -> Text:
        self._text += text
        return Text(text, tokens, self.spent)

    def _called(self, call: Mapping[str, Any]) -> str:
        """A piece of a call as text."""
        function = call.get("function") or {}
        text, number = "", call.get("index", 0)
        if number != self._call:
            text = "" if self._call is None else f"{self._closed()}\n"
            text += f'{CALL_BEGIN}\n{{"name": {json.dumps(function.get("name") or "")}, "arguments": '
            self._call, self._arguments = number, False
        arguments = str(function.get("arguments") or "")
        self._arguments = self._arguments or bool(arguments)
        # The mark of a call's end may stand in one of its strings.
        return text + arguments.replace("<", "\\u003c")

    def _closed(self) -> str:
        return f"{'' if self._arguments else '{}'}}}\n{CALL_END}"


def _usage(told: Mapping[str, Any]) -> Usage:
    details, diffusion = told.get("prompt_tokens_details") or {}, told.get("diffusion") or {}
    completion = int(told.get("completion_tokens") or 0)
    return Usage(
        int(told.get("prompt_tokens") or 0),
        int(details.get("cached_tokens") or 0),
        completion,
        int(diffusion.get("passes", completion)),
        int(diffusion.get("edits", 0)),
        int(diffusion.get("drafted_tokens", 0)),
        int(diffusion.get("accepted_tokens", 0)),
    )


def _shown(text: str, meta: Mapping[str, Any]) -> Canvas:
    settled, masked, edited = (
        tuple((int(start), int(end)) for start, end in meta.get(name) or ())
        for name in ("settled", "masked", "edited")
    )
    progress = float(meta.get("diffusion_progress") or 0)
    return Canvas(text, settled, masked, edited, progress, int(meta.get("pass") or 0))


def _tokens(logprobs: Mapping[str, Any] | None) -> tuple[TokenInfo, ...]:
    """Of a chat, or of a plain completion. The upstream's ids are not told."""
    if not logprobs:
        return ()
    if logprobs.get("content") is not None:
        rows = logprobs["content"]
        return tuple(_token(row, tuple(map(_beside, row.get("top_logprobs") or ()))) for row in rows)
    tops = logprobs.get("top_logprobs") or [None] * len(logprobs.get("tokens") or ())
    listed = zip(logprobs.get("tokens") or (), logprobs.get("token_logprobs") or (), tops, strict=False)
    return tuple(
        _token(
            {"token": token, "logprob": logprob},
            tuple((0, text.encode(), float(value)) for text, value in (top or {}).items()),
        )
        for token, logprob, top in listed
    )


def _token(row: Mapping[str, Any], top: tuple[tuple[int, bytes, float], ...]) -> TokenInfo:
    logprob = float(row.get("logprob") or 0)
    return TokenInfo(0, _raw(row), logprob, math.exp(logprob), int(row.get("pass") or 0), top)


def _beside(row: Mapping[str, Any]) -> tuple[int, bytes, float]:
    return 0, _raw(row), float(row["logprob"])


def _raw(row: Mapping[str, Any]) -> bytes:
    return bytes(row["bytes"]) if row.get("bytes") else str(row.get("token", "")).encode()
