"""The speech models behind the routes of `/v1/audio`, found and loaded when first asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar, cast

from vermilion.errors import ModelFileError, Overloaded, SpeechNotInstalled
from vermilion.speech.recognizer import Recognizer
from vermilion.speech.synthesizer import Synthesizer

_END = object()

Item = TypeVar("Item")
Model = TypeVar("Model")


class SpeechThread(Generic[Model]):
    """One model and the thread it works on. Calls take turns step by step, so that a short one does not wait
    for the end of a long one; only so many are taken."""

    MOST_CALLS = 16
    """At once; more are refused. Each holds its audio in memory."""

    def __init__(self, find: Callable[[], Model]) -> None:
        """`find` finds and loads it, and raises our errors where there is none."""
        self._find = find
        self._model: Model | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="speech")
        self._calls = asyncio.Semaphore(self.MOST_CALLS)

    async def model(self) -> Model:
        """Loaded at the first call; looked for again where there was none. Raises `SpeechNotInstalled`."""
        return await self.run(self._load)

    def _load(self) -> Model:
        if self._model is None:
            try:
                self._model = self._find()
            except ModelFileError as error:
                raise SpeechNotInstalled(str(error)) from None
        return self._model

    async def run(self, work: Callable[[], Item]) -> Item:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def enter(self) -> asyncio.Semaphore:
        """A place for one call, to be held with `async with`. Raises `Overloaded`."""
        if self._calls.locked():
            raise Overloaded(f"{self.MOST_CALLS} calls for audio are running. Try again shortly.")
        return self._calls

    async def each(self, items: Iterator[Item]) -> AsyncGenerator[Item, None]:
        """The items, each made on the thread when it is wanted. Giving up closes the iterator after the item
        that is being made."""
        try:
            while (item := await self.run(lambda: next(items, _END))) is not _END:
                yield cast(Item, item)
        finally:
            with suppress(AttributeError):
                self._thread.submit(items.close)  # type: ignore[attr-defined]


class SpeechModels:
    """A recogniser and a synthesiser, each on a thread of its own."""

    def __init__(
        self, find_recognizer: Callable[[], Recognizer], find_synthesizer: Callable[[], Synthesizer]
    ) -> None:
        self.hearing = SpeechThread(find_recognizer)
        self.speaking = SpeechThread(find_synthesizer)
