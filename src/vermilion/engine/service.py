"""The engine on a thread of its own, for asyncio callers: one queue of events per request."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from vermilion.decoding.program import Program
from vermilion.engine.engine import Engine
from vermilion.engine.loading import read_adapter
from vermilion.errors import BadRequest, Draining, Overloaded, ProcessLost, VermilionError
from vermilion.types import EngineStats, Event, Finish, ModelInfo, Request, Usage

log = logging.getLogger(__name__)

_Listener = tuple[asyncio.AbstractEventLoop, "asyncio.Queue[Event]"]


class Service:
    """Serves many coroutines from one engine. `close` ends the thread."""

    def __init__(self, engine: Engine, max_waiting: int) -> None:
        self._engine = engine
        self._max_requests = engine.scheduler.limits.max_running + max_waiting
        self._commands: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._listeners: dict[str, _Listener] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @property
    def model(self) -> ModelInfo:
        return replace(self._engine.model, adapters=self._engine.adapters.names)

    def stats(self) -> EngineStats:
        return self._engine.stats()

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """The request's events, ending with its `Finish`. Closing the iterator cancels it.

        Raises at the first step: `Overloaded` when the queue is full, `Draining` once closed, `ProcessLost`
        where nothing runs any more, and what `Engine.submit` raises.
        """
        if self._closing:
            raise Draining
        if self._engine.lost:
            raise ProcessLost(self._engine.lost)
        if request.grammar is None and not request.suffix:
            program = self._engine.check(request)
        else:
            # Compiling a grammar takes a while, and so does the first look for a vocabulary's line breaks.
            program = await asyncio.to_thread(self._engine.check, request)
        if request.id in self._listeners:
            raise BadRequest(f"A request with id {request.id!r} is already running.", param="id")
        if len(self._listeners) >= self._max_requests:
            raise Overloaded(
                f"All {self._max_requests} places are taken, waiting ones included. Try again shortly."
            )
        events: asyncio.Queue[Event] = asyncio.Queue()
        self._listeners[request.id] = (asyncio.get_running_loop(), events)
        self._commands.put(lambda: self._submit(request, program))
        finished = False
        try:
            if self._closing:
                # `close` came between the check above and this: the thread may never see the request.
                raise Draining
            while not finished:
                event = await events.get()
                finished = isinstance(event, Finish)
                yield event
        finally:
            self._listeners.pop(request.id, None)
            if not finished:
                self._commands.put(lambda: self._abort(request.id))

    def prefilled(self, request_id: str) -> Usage:
        """What the prompt of a running request has cost so far."""
        return self._engine.prefilled(request_id)

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Read an adapter while answers go on. Raises ModelFileError where it does not fit the model."""
        adapter = await asyncio.to_thread(read_adapter, self._engine, folder)
        await self._between_steps(lambda: self._engine.adapters.add(name, adapter))

    async def unload_adapter(self, name: str) -> None:
        """Answers that run on it go on to their end. Raises ModelNotFound."""
        await self._between_steps(lambda: self._engine.adapters.remove(name))

    async def _between_steps(self, command: Callable[[], None]) -> None:
        """Carry out `command` on the engine's thread; raises what it raises, `Draining` once closed."""
        done: Future[None] = Future()

        def carry_out() -> None:
            try:
                command()
            except VermilionError as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        if self._closing:
            raise Draining
        self._commands.put(carry_out)
        await asyncio.wrap_future(done)

    def close(self) -> None:
        """Stop after the step that runs; requests still open end as aborted."""
        self._closing = True
        self._commands.put(None)
        self._thread.join()

    def _submit(self, request: Request, program: Program) -> None:
        try:
            self._engine.submit(request, program)
        except Exception:
            # The thread's edge, as below: one request that cannot be taken up must not end all others.
            log.exception("request could not be taken up")
            message = "The engine could not take up this request."
            self._publish([(request.id, Finish("error", Usage(), message))])

    def _abort(self, request_id: str) -> None:
        self._engine.abort(request_id)

    def _serve(self) -> None:
        while True:
            if not self._obey():
                for name in list(self._listeners):
                    finish = self._engine.abort(name)
                    self._publish([(name, finish)] if finish else [])
                return
            try:
                events = self._engine.step()
            except Exception:
                # The thread's edge: whatever failed, the callers must hear of it and the thread live on.
                log.exception("engine step failed")
                events = self._engine.fail_all("The engine failed while working on this request.")
            self._publish(events)

    def _obey(self) -> bool:
        """Carry out what callers asked for; waits while there is no work. False: it is time to stop."""
        wait = not self._engine.has_work
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            wait = not self._engine.has_work

    def _publish(self, events: list[tuple[str, Event]]) -> None:
        batches: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Queue[Event], Event]]] = defaultdict(list)
        for name, event in events:
            listener = self._listeners.get(name)
            if listener is not None:
                batches[listener[0]].append((listener[1], event))
        for loop, batch in batches.items():
            # A loop that was closed has nobody left to listen.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_deliver, batch)


def _deliver(batch: list[tuple[asyncio.Queue[Event], Event]]) -> None:
    for events, event in batch:
        events.put_nowait(event)
