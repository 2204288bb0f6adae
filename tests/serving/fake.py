"""A fake engine, tokenizer and template: what the edge does can be seen without a model."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from vermilion.accounts.gate import Accounts
from vermilion.decoding.decoders import DECODERS
from vermilion.errors import ModelFileError, ModelNotFound, Overloaded
from vermilion.models.families.family_presets import WITH_BASE
from vermilion.serving.audio.speech_threads import SpeechModels
from vermilion.serving.backend import Served
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.service_state import ServiceState
from vermilion.types import (
    Canvas,
    CanvasToken,
    EngineStats,
    Event,
    Finish,
    ModelInfo,
    Request,
    Seeds,
    Text,
    TokenInfo,
    Usage,
)

MODEL = ModelInfo(
    id="tiny-diffusion",
    context_length=256,
    vocab_size=0x110000,
    eos_token_ids=(2,),
    mask_token_id=16,
    created=1,
    description="A fake.",
    decoders=tuple(name for name in DECODERS if name != "schedule"),
    presets=WITH_BASE,
    default_preset="lossless",
)


class FakeTokenizer:
    """One token per character."""

    longest_token_bytes = 4

    def encode(self, text: str, special: bool = False) -> list[int]:
        return [ord(letter) for letter in text]

    def token_text(self, token_id: int) -> str:
        return chr(token_id)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


class FakeTemplate:
    """`role:content` lines."""

    takes_tools = False
    source = "{{ messages }}"

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        return "".join(f"{message['role']}:{message['content']}\n" for message in messages)

    def encode(
        self, messages: Sequence[Mapping[str, str]], tokenizer: FakeTokenizer, tools: object = None
    ) -> list[int]:
        return tokenizer.encode(self.render(messages))


@dataclass
class FakeBackend:
    """Answers with `words`, one per pass, as many as `max_tokens`; `endless` never ends by itself."""

    words: tuple[str, ...] = ("Hello", ", ", "world", "!")
    step_s: float = 0.0
    endless: bool = False
    capacity: int = 100
    failure: Exception | None = None
    """Raised after the first word."""
    finish: Finish | None = None
    """Sent after the first word."""
    model: ModelInfo = MODEL
    requests: list[Request] = field(default_factory=list)
    running: int = 0
    cancelled: int = 0

    def stats(self) -> EngineStats:
        return EngineStats(running=self.running, pages_used=3, pages_total=9, pages_cached=2, passes=5)

    def prefilled(self, request_id: str) -> Usage:
        """A fake prompt is read at once."""
        return Usage(sum(len(one.prompt) for one in self.requests if one.id == request_id and self.running))

    async def load_adapter(self, name: str, folder: Path) -> None:
        if not (folder / "adapter_config.json").is_file():
            raise ModelFileError(f"{folder / 'adapter_config.json'} is missing.")
        self.model = replace(self.model, adapters=(*self.model.adapters, name))

    async def unload_adapter(self, name: str) -> None:
        if name not in self.model.adapters:
            raise ModelNotFound(name, self.model.adapters)
        self.model = replace(self.model, adapters=tuple(one for one in self.model.adapters if one != name))

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        if self.running >= self.capacity:
            raise Overloaded("The queue is full.")
        self.requests.append(request)
        self.running += 1
        ended = False
        try:
            num_words = 0
            for number, event in self._passes(request):
                num_words = number
                await asyncio.sleep(self.step_s)
                yield event
                if self.failure:
                    raise self.failure
                if self.finish:
                    break
            ended = True
            usage = Usage(len(request.prompt), 4, num_words, num_words, edits=1)
            whole = num_words == len(self.words) or request.seeds is not None
            if request.seeds is not None:
                usage = replace(usage, completion_tokens=request.seeds.ids.count(None))
            yield self.finish or Finish("stop" if whole else "length", usage)
        finally:
            self.running -= 1
            self.cancelled += not ended

    def _passes(self, request: Request) -> Iterator[tuple[int, Event]]:
        if request.seeds is not None:
            yield 1, self._seeded(request, request.seeds)
            return
        number, text = 0, ""
        while self.endless or number < min(len(self.words), request.sampling.max_tokens):
            word = self.words[number % len(self.words)]
            number += 1
            settled, text = len(text), text + word
            if request.canvas:
                spans = ((0, settled),) if settled else ()
                progress = min(0.9, number / 10)
                edge = (len(text), len(text) + 1)
                tokens = self._canvas_tokens(number, edge) if request.canvas_tokens else ()
                yield number, Canvas(text + "~", spans, (edge,), (), progress, number, tokens)
            usage = Usage(len(request.prompt), 4, number, number)
            yield number, Text(word, self._tokens(request, word, number), usage)

    def _canvas_tokens(self, number: int, edge: tuple[int, int]) -> tuple[CanvasToken, ...]:
        """The words so far, the last of them not settled, and a mask behind them."""
        words = [self.words[index % len(self.words)] for index in range(number)]
        ends = list(accumulate(map(len, words)))
        tokens = [
            CanvasToken(end - len(word), end, "settled", 0.5, index)
            for index, (word, end) in enumerate(zip(words, ends, strict=True), 1)
        ]
        tokens[-1] = replace(tokens[-1], state="filled", confidence=0.75)
        return (*tokens, CanvasToken(*edge, "masked", 0.25, number))

    def _seeded(self, request: Request, seeds: Seeds) -> Event:
        """Candidates are the likelier the oftener the prompt names them; holes are filled with dots."""
        tokens = []
        for number in range(seeds.ids.count(None)):
            candidates = seeds.candidates[number] if seeds.candidates else (ord("."),)
            top = tuple((one, chr(one).encode(), float(request.prompt.count(one)) - 9) for one in candidates)
            best = max(top, key=lambda row: row[2])
            tokens.append(TokenInfo(best[0], best[1], best[2], 0.5, 1, top))
        text = "".join(token.text for token in tokens)
        return Text(text, tuple(tokens), Usage(len(request.prompt), 4, len(tokens), 1))

    def _tokens(self, request: Request, word: str, number: int) -> tuple[TokenInfo, ...]:
        if request.sampling.logprobs is None:
            return ()
        top = tuple((i, f"t{i}".encode(), -1.0 - i) for i in range(request.sampling.logprobs))
        return (TokenInfo(number, word.encode(), math.log(0.5), 0.5, number, top),)


def fake_service(
    backend: FakeBackend | None = None, accounts: Accounts | None = None, **settings: object
) -> ServiceState:
    return ServiceState(ServeConfig(**settings), served(backend or FakeBackend()), accounts, no_speech())


def no_speech() -> SpeechModels:
    """On a machine that has some, too."""

    def none() -> Any:
        raise ModelFileError("Nothing here can hear or speak.")

    return SpeechModels(none, none)


def served(backend: FakeBackend, template: object = FakeTemplate()) -> Served:
    return Served(backend, FakeTokenizer(), template)


def sse(content: str) -> list[dict[str, Any]]:
    """The objects of a stream that ended with [DONE]."""
    lines = [line.removeprefix("data: ") for line in content.split("\n\n") if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]
