"""Replicas behind one backend, without Ray between them."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from ray_serve.doubles import Fleet, replica_of
from serving.fake import MODEL, FakeBackend
from vermilion.errors import BadParameter, Draining, EngineFailure, ModelFileError, ModelNotFound, Overloaded
from vermilion.ray_serve import engine_replica
from vermilion.ray_serve.answer_items import RefusedByReplica, ReplicaRefusal
from vermilion.ray_serve.engine_replica import EngineReplica
from vermilion.ray_serve.replica_backend import NoReplica, ReplicaBackend
from vermilion.types import Event, Finish, Request, Sampling, Usage

pytestmark = pytest.mark.anyio
REQUEST = Request("one", (1, 2, 3), Sampling(max_tokens=3), canvas=True)


def backend_of(*replicas: EngineReplica, wait_s: float = 5.0, **adapters: Path) -> ReplicaBackend:
    return ReplicaBackend(Fleet(list(replicas)), MODEL, adapters, wait_s)


async def events_of(backend: ReplicaBackend | FakeBackend, request: Request = REQUEST) -> list[Event]:
    return [event async for event in backend.generate(request)]


async def test_an_answer_is_what_the_engine_says() -> None:
    backend = backend_of(replica_of(FakeBackend()))
    assert await events_of(backend) == await events_of(FakeBackend())
    assert backend.stats().passes == 5 and backend.stats().running == 0


async def test_errors_keep_their_words_their_status_and_their_code() -> None:
    for error in (
        Overloaded("The queue is full."),
        BadParameter("top_p", 2, "0 to 1"),
        ModelNotFound("x", ("y",)),
    ):
        backend = backend_of(replica_of(FakeBackend(failure=error, words=("a",))))
        with pytest.raises(RefusedByReplica) as caught:
            await events_of(backend)
        seen, wanted = pickle.loads(pickle.dumps(ReplicaRefusal.of(caught.value))), ReplicaRefusal.of(error)
        assert seen == wanted


async def test_a_replica_lost_before_its_first_word_is_replaced_by_another() -> None:
    fleet = Fleet([replica_of(FakeBackend()), replica_of(FakeBackend())])
    fleet.lost_after = {0: 1}
    events = [event async for event in ReplicaBackend(fleet, MODEL, {}).generate(REQUEST)]
    assert isinstance(events[-1], Finish) and fleet.asked == [0, 1]


async def test_a_replica_lost_in_an_answer_ends_it_with_an_error() -> None:
    fleet = Fleet([replica_of(FakeBackend(step_s=0.01)), replica_of(FakeBackend())])
    fleet.lost_after = {0: 3}
    with pytest.raises(EngineFailure):
        [event async for event in ReplicaBackend(fleet, MODEL, {}).generate(REQUEST)]
    assert fleet.asked == [0]


async def test_a_replica_that_drains_is_not_the_answer() -> None:
    fleet = Fleet([replica_of(FakeBackend(capacity=0)), replica_of(FakeBackend())])
    fleet.replicas[0]._opened.served.backend.generate = _draining  # type: ignore[method-assign]
    events = [event async for event in ReplicaBackend(fleet, MODEL, {}).generate(REQUEST)]
    assert isinstance(events[-1], Finish) and fleet.asked == [0, 1]


async def _draining(request: Request) -> AsyncGenerator[Event, None]:
    raise Draining
    yield


async def test_engines_lost_one_after_the_other_are_not_asked_for_ever() -> None:
    fleet = Fleet([replica_of(FakeBackend())])
    fleet.lost_after = {0: 0}
    with pytest.raises(NoReplica):
        await events_of(ReplicaBackend(fleet, MODEL, {}))


async def test_a_request_that_no_engine_takes_is_refused_in_time() -> None:
    fleet = Fleet([replica_of(FakeBackend())])
    fleet.full = True
    with pytest.raises(NoReplica, match="tiny-diffusion"):
        await events_of(ReplicaBackend(fleet, MODEL, {}, wait_s=0.05))


async def test_closing_an_answer_cancels_it_and_tells_what_its_prompt_has_cost() -> None:
    engine = FakeBackend(step_s=0.3)
    backend = backend_of(replica_of(engine))
    async with aclosing(backend.generate(REQUEST)) as events:
        asking = asyncio.create_task(anext(events))
        await asyncio.sleep(0.2)
        assert backend.prefilled(REQUEST.id) == Usage(3)
        assert backend.prefilled("on") == Usage()
        await asking
    assert engine.cancelled == 1 and backend.prefilled(REQUEST.id) == Usage()


def adapter(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "adapter_config.json").write_text("{}")
    return folder / name


async def answered(backend: ReplicaBackend, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        request = Request(f"{name}-{number}", (1,), Sampling(max_tokens=2), adapter=name)
        assert isinstance((await events_of(backend, request))[-1], Finish)


async def test_a_replica_reads_adapters_when_they_are_asked_for_and_keeps_the_last(tmp_path: Path) -> None:
    engine = FakeBackend()
    adapters = {name: adapter(tmp_path, name) for name in ("a", "b", "c")}
    backend = backend_of(replica_of(engine, max_adapters=2), **adapters)
    assert backend.model.adapters == ("a", "b", "c") and engine.model.adapters == ()
    await answered(backend, "abac")
    assert engine.model.adapters == ("a", "c")
    with pytest.raises(ModelNotFound):
        await answered(backend, "d")


async def test_an_adapter_in_use_stays(tmp_path: Path) -> None:
    engine = FakeBackend(step_s=0.05)
    adapters = {name: adapter(tmp_path, name) for name in ("a", "b")}
    backend = backend_of(replica_of(engine, max_adapters=1), **adapters)
    await asyncio.gather(answered(backend, "a"), answered(backend, "b"))
    assert engine.model.adapters == ("a", "b")
    await answered(backend, "b")


async def test_adapters_come_and_go_while_requests_run(tmp_path: Path) -> None:
    backend = backend_of(replica_of(FakeBackend()))
    with pytest.raises(RefusedByReplica, match="is missing") as caught:
        await backend.load_adapter("a", tmp_path / "none")
    assert caught.value.code == ModelFileError.code
    await backend.load_adapter("a", adapter(tmp_path, "a"))
    await answered(backend, "a")
    await backend.unload_adapter("a")
    assert backend.model.adapters == ()
    with pytest.raises(ModelNotFound):
        await backend.unload_adapter("a")


async def test_an_engine_that_makes_no_pass_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    moment_s = 0.0
    monkeypatch.setattr(engine_replica, "monotonic", lambda: moment_s)
    engine = FakeBackend()
    replica = replica_of(engine)
    moment_s = 2 * engine_replica.STALLED_S
    replica.check_health()
    engine.running = 1
    moment_s += engine_replica.STALLED_S - 1
    replica.check_health()
    moment_s += 2
    with pytest.raises(RuntimeError, match="no pass"):
        replica.check_health()


async def test_an_engine_that_fails_ends_the_answer() -> None:
    backend = backend_of(replica_of(FakeBackend(finish=Finish("error", Usage(), "broken"))))
    assert (await events_of(backend))[-1] == Finish("error", Usage(), "broken")
