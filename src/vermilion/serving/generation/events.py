"""From requests to the one stream of events that every kind of reply is made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from time import perf_counter

from vermilion.errors import BadRequest, EngineFailure
from vermilion.serving.backend import EventSource
from vermilion.serving.generation.metering import Metering
from vermilion.serving.service_state import Arrivals, ServiceState
from vermilion.types import Event, Finish, Request, Text

Arrival = tuple[int, Event]
EventStream = AsyncGenerator[Arrival | None, None]
"""(index of the choice, event), in the order they came; None where nothing came for a while."""


async def generate_events(
    service: ServiceState,
    backend: EventSource,
    requests: Sequence[Request],
    idle_s: float | None = None,
    num_prompts: int = 1,
) -> EventStream:
    """Runs the requests of one call, as many for each of its prompts, side by side; closing it cancels them.

    Yields None after every `idle_s` seconds of silence. Raises what the engine raises, `EngineFailure`
    for a request that ended in an error (no event of it then reads as an answer), and on a service with
    accounts the errors of `accounts/refusals.py` before the engine is asked.
    """
    started_s, salt = perf_counter(), service.owner()
    requests = [replace(request, cache_salt=salt) for request in requests] if salt else requests
    unfinished = set(range(len(requests)))
    metering, silent = Metering(backend.model.id, requests, num_prompts), True
    failure: Exception | None = None
    with service.running() as arrivals:
        replay = await metering.begin()
        if replay:
            for answered in replay:
                yield answered
            return
        pumps = [
            asyncio.create_task(_pump(backend, index, request, arrivals))
            for index, request in enumerate(requests)
        ]
        try:
            while unfinished:
                arrival = await _take(arrivals, idle_s)
                if isinstance(arrival, Exception):
                    raise arrival
                if arrival is not None:
                    index, event = arrival
                    metering.add(index, event)
                    if isinstance(event, Finish):
                        unfinished.discard(index)
                        service.metrics.finished(event.usage)
                        service.answer_log.add(requests[index], backend.model.id, event)
                        if event.reason in ("error", "abort"):
                            if event.code:
                                raise BadRequest(event.message, "response_format", event.code)
                            raise EngineFailure(event.message or "The engine gave this answer up. Try again.")
                        if not unfinished:
                            await metering.settle()
                    elif silent and isinstance(event, Text):
                        service.metrics.first_text_s.observe(perf_counter() - started_s)
                        silent = False
                yield arrival
        except Exception as error:
            failure = error
            raise
        finally:
            if failure is None:
                _give_up(service, backend, metering, [(index, requests[index].id) for index in unfinished])
            metering.end(failure)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


def _give_up(
    service: ServiceState, backend: EventSource, metering: Metering, unfinished: Sequence[tuple[int, str]]
) -> None:
    """Counts what the answers that nobody waits for any more have cost."""
    service.metrics.cancellations.inc(len(unfinished))
    for index, id in unfinished:
        metering.begun(index, backend.prefilled(id))
        service.metrics.finished(metering.spent(index))


async def _pump(backend: EventSource, index: int, request: Request, arrivals: Arrivals) -> None:
    """Never fails: what goes wrong goes to the reader of `arrivals`. Cancelling it closes the generator."""
    try:
        async with aclosing(backend.generate(request)) as events:
            async for event in events:
                arrivals.put_nowait((index, event))
                if isinstance(event, Finish):
                    return
        arrivals.put_nowait(EngineFailure("The engine stopped in the middle of this answer. Try again."))
    except Exception as error:
        arrivals.put_nowait(error)


async def _take(arrivals: Arrivals, idle_s: float | None) -> Arrival | Exception | None:
    if not arrivals.empty():
        return arrivals.get_nowait()
    try:
        async with asyncio.timeout(idle_s):
            return await arrivals.get()
    except TimeoutError:
        return None
