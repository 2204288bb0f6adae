"""Many coroutines on one engine thread: cancellation, refusal, failure and the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from tests import tiny
from vermilion.decoding.forward_jobs import Job
from vermilion.decoding.passes import Reading
from vermilion.engine.engine import Engine, Runner
from vermilion.engine.service import Service
from vermilion.errors import BadRequest, ContextLengthExceeded, Draining, Overloaded
from vermilion.types import Decoding, Event, Finish, Request, Sampling, Text, Timing

REQUEST = Request("r", (5, 9, 33), Sampling(max_tokens=24, ignore_eos=True), Decoding("lossless"))


class Gate:
    """A worker that can be held before a step, or told to fail the next."""

    def __init__(self, worker: Runner) -> None:
        self.worker = worker
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.failing = False

    @property
    def timing(self) -> Timing:
        return self.worker.timing

    def run(self, jobs: Sequence[Job]) -> list[list[Reading]]:
        self.entered.set()
        assert self.open.wait(20)
        if self.failing:
            self.failing = False
            raise RuntimeError("out of memory")
        return self.worker.run(jobs)


@pytest.fixture
def engine() -> Engine:
    built = tiny.engine("causal-shift", tiny.model("causal-shift"), prefill_chunk=8, max_running=4)
    built.worker = Gate(built.worker)
    return built


@pytest.fixture
def gate(engine: Engine) -> Gate:
    assert isinstance(engine.worker, Gate)
    return engine.worker


@pytest.fixture
def service(engine: Engine, gate: Gate) -> Iterator[Service]:
    built = Service(engine, max_waiting=4)
    yield built
    gate.open.set()
    built.close()


async def collect(service: Service, request: Request) -> list[Event]:
    return [event async for event in service.generate(request)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it never came true")


async def entered(gate: Gate) -> None:
    gate.entered.clear()
    await until(gate.entered.is_set)


def idle(service: Service) -> bool:
    stats = service.stats()
    return not (stats.running or stats.waiting or stats.pages_used)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(scenario(), 30)

    asyncio.run(limited())


def test_concurrent_answers_are_those_of_one_at_a_time(service: Service) -> None:
    requests = [
        replace(REQUEST, id=f"{i}", prompt=tuple(range(2 + i, 9 + 3 * i)), decoding=decoding)
        for i, decoding in enumerate([Decoding("ar"), Decoding("lossless"), Decoding("threshold")] * 2)
    ]

    async def scenario() -> None:
        alone = [text_of(await collect(service, request)) for request in requests]
        together = await asyncio.gather(*(collect(service, request) for request in requests))
        assert [text_of(events) for events in together] == alone
        assert all(sum(isinstance(event, Finish) for event in events) == 1 for events in together)
        assert idle(service)

    run(scenario)


def test_closing_the_iterator_midway_frees_its_memory(service: Service) -> None:
    async def scenario() -> None:
        stream = service.generate(replace(REQUEST, sampling=Sampling(max_tokens=400, ignore_eos=True)))
        assert isinstance(await anext(stream), Text)
        assert service.stats().pages_used > 0
        await stream.aclose()
        await until(lambda: idle(service))

    run(scenario)


def test_cancelling_during_prefill_frees_the_memory_within_a_step(service: Service, gate: Gate) -> None:
    async def scenario() -> None:
        gate.open.clear()
        request = replace(REQUEST, prompt=(7,) * 200, sampling=Sampling(max_tokens=50))
        task = asyncio.create_task(collect(service, request))
        await entered(gate)
        assert service.stats().running == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open.set()
        await until(lambda: idle(service))
        # 200 tokens are 25 chunks; only the one that ran was stored.
        assert service.stats().passes == 1

    run(scenario)


def test_cancelling_while_waiting_leaves_the_others_alone(service: Service, gate: Gate) -> None:
    async def scenario() -> None:
        gate.open.clear()
        running = [asyncio.create_task(collect(service, replace(REQUEST, id=f"{i}"))) for i in range(4)]
        waiting = asyncio.create_task(collect(service, replace(REQUEST, id="w")))
        await entered(gate)
        waiting.cancel()
        gate.open.set()
        answers = await asyncio.gather(*running)
        assert len({text_of(events) for events in answers}) == 1
        assert all(isinstance(events[-1], Finish) for events in answers)
        await until(lambda: idle(service))

    run(scenario)


def test_a_full_service_refuses_and_takes_again_when_there_is_room(service: Service, gate: Gate) -> None:
    async def scenario() -> None:
        gate.open.clear()
        tasks = [asyncio.create_task(collect(service, replace(REQUEST, id=f"{i}"))) for i in range(8)]
        await entered(gate)
        with pytest.raises(Overloaded):
            await collect(service, replace(REQUEST, id="more"))
        gate.open.set()
        await asyncio.gather(*tasks)
        assert text_of(await collect(service, replace(REQUEST, id="more")))

    run(scenario)


def test_what_cannot_be_answered_is_refused_before_it_is_queued(service: Service, gate: Gate) -> None:
    async def scenario() -> None:
        with pytest.raises(ContextLengthExceeded):
            await collect(service, replace(REQUEST, prompt=(5,) * 2000))
        for token in (-1, tiny.VOCAB):
            with pytest.raises(BadRequest, match="logit_bias"):
                await collect(
                    service, replace(REQUEST, sampling=Sampling(max_tokens=3, logit_bias={token: 1.0}))
                )
        with pytest.raises(BadRequest, match="empty"):
            await collect(service, replace(REQUEST, prompt=()))
        gate.open.clear()
        first = asyncio.create_task(collect(service, REQUEST))
        await entered(gate)
        with pytest.raises(BadRequest, match="already running"):
            await collect(service, REQUEST)
        gate.open.set()
        await first
        assert idle(service)

    run(scenario)


def test_a_failing_step_ends_its_requests_and_the_service_goes_on(service: Service, gate: Gate) -> None:
    async def scenario() -> None:
        expected = text_of(await collect(service, REQUEST))
        gate.open.clear()
        tasks = [asyncio.create_task(collect(service, replace(REQUEST, id=f"{i}"))) for i in range(6)]
        await entered(gate)
        await asyncio.sleep(0.05)
        gate.failing = True
        gate.open.set()
        for events in await asyncio.gather(*tasks):
            finish = events[-1]
            assert isinstance(finish, Finish)
            if finish.reason != "error":
                # Taken up only after the failure.
                assert text_of(events) == expected
                continue
            assert "out of memory" not in finish.message
        assert idle(service)
        assert text_of(await collect(service, REQUEST)) == expected

    run(scenario)


def test_close_ends_open_requests_and_refuses_new_ones(engine: Engine, gate: Gate) -> None:
    service = Service(engine, max_waiting=4)

    async def scenario() -> None:
        gate.open.clear()
        tasks = [asyncio.create_task(collect(service, replace(REQUEST, id=f"{i}"))) for i in range(6)]
        await entered(gate)
        closing = asyncio.create_task(asyncio.to_thread(service.close))
        await asyncio.sleep(0.05)
        gate.open.set()
        await closing
        for events in await asyncio.gather(*tasks):
            assert isinstance(events[-1], Finish) and events[-1].reason == "abort"
        with pytest.raises(Draining):
            await collect(service, REQUEST)
        assert idle(service)

    run(scenario)


def test_a_request_that_cannot_be_taken_up_is_told_so(service: Service, engine: Engine) -> None:
    def refuse(request: Request) -> None:
        raise BadRequest("no")

    async def scenario() -> None:
        submit, engine.submit = engine.submit, refuse  # type: ignore[method-assign, assignment]
        events = await collect(service, REQUEST)
        assert isinstance(events[-1], Finish) and events[-1].reason == "error"
        engine.submit = submit  # type: ignore[method-assign]
        assert text_of(await collect(service, REQUEST))

    run(scenario)
