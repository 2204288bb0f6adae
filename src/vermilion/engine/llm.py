"""The Python API: a model in this process, called without a server."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vermilion.config import EngineConfig
from vermilion.decoding.presets import resolve
from vermilion.decoding.program import Program
from vermilion.engine.loading import Loaded, load_model, read_adapter
from vermilion.errors import BadRequest, EngineFailure
from vermilion.models.catalog import DEFAULT_MODEL
from vermilion.types import (
    Decoding,
    Event,
    Finish,
    FinishReason,
    Grammar,
    ModelInfo,
    Request,
    Sampling,
    Text,
    Usage,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    text: str
    finish_reason: FinishReason
    usage: Usage


class LLM:
    """A loaded model.

        llm = LLM()
        answers = llm.generate(["def fibonacci(n):"], Sampling(max_tokens=64), "fast")
        for event in llm.stream(llm.chat_prompt([{"role": "user", "content": "Hello"}])): ...
        answers = LLM(adapters={"mine": "runs/mine/adapter"}).using("mine").generate("Dear")

    Several streams may be open at once; they share forwards. One thread at a time.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        config: EngineConfig | None = None,
        loaded: Loaded | None = None,
        adapters: Mapping[str, Path | str] | None = None,
    ) -> None:
        """`model` is a pulled model's name or a folder, `adapters` folders in PEFT's layout by the names that
        `using` takes. Raises ModelFileError, ModelNotFound, ConfigError."""
        parts = loaded or load_model(model, config or EngineConfig())
        self.tokenizer = parts.tokenizer
        self.template = parts.template
        self.engine = parts.engine
        self._numbers = itertools.count()
        self._events: dict[str, deque[Event]] = {}
        self._adapter = ""
        for name, folder in (adapters or {}).items():
            self.load_adapter(name, folder)

    @property
    def model(self) -> ModelInfo:
        return replace(self.engine.model, adapters=self.engine.adapters.names)

    def load_adapter(self, name: str, folder: Path | str) -> None:
        """Raises ModelFileError where the adapter does not fit the model."""
        self.engine.adapters.add(name, read_adapter(self.engine, Path(folder)))

    def unload_adapter(self, name: str) -> None:
        """Answers that are open go on. Raises ModelNotFound."""
        self.engine.adapters.remove(name)

    def using(self, adapter: str) -> LLM:
        """This model with an adapter answering; it shares engine and forwards. Raises ModelNotFound."""
        self.engine.adapters.check(adapter)
        other = copy(self)
        other._adapter = adapter
        return other

    def generate(
        self,
        prompts: str | Sequence[int] | Sequence[str | Sequence[int]],
        sampling: Sampling | None = None,
        decoding: Decoding | str | None = None,
        grammar: Grammar | None = None,
    ) -> list[Answer]:
        """Answers to one prompt or many, batched, in the prompts' order. Text is taken as it is: for a chat
        pass `chat_prompt`'s ids. Without a `decoding` the model's default preset decodes. Where one
        prompt is refused or fails, none of them goes on."""
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        listed: Any = [prompts] if single else prompts
        shape = Request("", (), grammar=grammar)
        checked = [self._checked(prompt, sampling, decoding, "", shape) for prompt in listed]
        names = [self._submit(*some) for some in checked]
        try:
            return [_folded(self._drain(name)) for name in names]
        finally:
            for name in names:
                self._drop(name)

    def stream(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        decoding: Decoding | str | None = None,
        *,
        suffix: str | Sequence[int] = "",
        canvas: bool = False,
        grammar: Grammar | None = None,
    ) -> Generator[Event, None, None]:
        """The events of one answer as they come; closing the iterator cancels it.

        With `suffix` the answer fills the gap between the two. A request that cannot be answered is refused
        at once; the work begins with the first event asked for.
        """
        shape = Request("", (), canvas=canvas, grammar=grammar)
        return self._opened(*self._checked(prompt, sampling, decoding, suffix, shape))

    def chat_prompt(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> list[int]:
        """A conversation as token ids, through the model's chat template."""
        if self.template is None:
            raise BadRequest(
                f"{self.model.id} has no chat template; pass plain text instead.", param="messages"
            )
        return self.template.encode(messages, self.tokenizer, tools=tools)

    def close(self) -> None:
        """Drop every open answer."""
        for name in list(self._events):
            self._drop(name)

    def _checked(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None,
        decoding: Decoding | str | None,
        suffix: str | Sequence[int],
        shape: Request,
    ) -> tuple[Request, Program]:
        """`shape` with an id, the tokens and the settings, and the program that will answer it."""
        chosen = decoding if isinstance(decoding, Decoding) else resolve(self.model, decoding)
        ids = self._ids(prompt)
        after = self._ids(suffix)
        wanted = sampling or Sampling()
        room = self.model.context_length - len(ids) - len(after)
        if room > 0:
            wanted = replace(wanted, max_tokens=min(wanted.max_tokens, room))
        name = f"llm-{next(self._numbers)}"
        request = replace(
            shape,
            id=name,
            prompt=ids,
            sampling=wanted,
            decoding=chosen,
            suffix=after,
            adapter=self._adapter,
        )
        return request, self.engine.check(request)

    def _submit(self, request: Request, program: Program) -> str:
        self.engine.submit(request, program)
        self._events[request.id] = deque()
        return request.id

    def _opened(self, request: Request, program: Program) -> Generator[Event, None, None]:
        yield from self._drain(self._submit(request, program))

    def _drop(self, name: str) -> None:
        self.engine.abort(name)
        self._events.pop(name, None)

    def _ids(self, text: str | Sequence[int]) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text)) if isinstance(text, str) else tuple(text)

    def _drain(self, name: str) -> Generator[Event, None, None]:
        events = self._events[name]
        try:
            while True:
                while not events:
                    self._step()
                event = events.popleft()
                yield event
                if isinstance(event, Finish):
                    return
        finally:
            self._drop(name)

    def _step(self) -> None:
        for name, event in self.engine.step():
            if name in self._events:
                self._events[name].append(event)


def _folded(events: Iterator[Event]) -> Answer:
    parts: list[str] = []
    for event in events:
        if isinstance(event, Text):
            parts.append(event.text)
        elif isinstance(event, Finish):
            if event.reason == "error":
                raise EngineFailure(event.message)
            return Answer("".join(parts), event.reason, event.usage)
    raise EngineFailure("The answer ended without a finish.")
