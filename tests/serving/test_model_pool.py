"""Several models in one service: chosen per request, loaded once, unloaded when room is needed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest

from serving.fake import MODEL, FakeBackend, served
from vermilion.errors import ConfigError, ModelFileError, ProcessLost
from vermilion.serving.http.app import ROUTES, create_app
from vermilion.serving.http.routes import OPERATE, RouteTable
from vermilion.serving.model_pool import Described, ModelPool, ModelSource
from vermilion.serving.pooled_model import Opened
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.service_state import ServiceState

pytestmark = pytest.mark.anyio
QUESTION = {"messages": [{"role": "user", "content": "hi"}]}
GB = 10**9


@dataclass
class Shelf:
    """Models that a pool may open; each takes 1 GB and answers with its own name."""

    names: tuple[str, ...] = ("first", "second", "third")
    backends: dict[str, list[FakeBackend]] = field(default_factory=dict)
    open_s: float = 0.0
    step_s: float = 0.0
    faulty: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    gate: threading.Event = field(default_factory=threading.Event)
    closed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def open(self, name: str) -> Opened:
        assert threading.current_thread() is not threading.main_thread()
        self.gate.wait(10)
        time.sleep(self.open_s)
        if name in self.faulty:
            raise ModelFileError(f"{name}: a shard is missing.")
        backend = FakeBackend(words=(f"I am {name}",), model=replace(MODEL, id=name), step_s=self.step_s)
        self.backends.setdefault(name, []).append(backend)
        return Opened(served(backend), lambda: self.closed.append(name))

    def describe(self, name: str) -> Described:
        return Described(replace(MODEL, id=name), GB, name not in self.absent)

    def source(self) -> ModelSource:
        return ModelSource(self.open, self.describe)


@asynccontextmanager
async def serving(
    shelf: Shelf, budget_bytes: int = 0, wait_s: float = 5.0, **settings: object
) -> AsyncIterator[tuple[httpx.AsyncClient, ModelPool]]:
    pool = ModelPool(shelf.source(), budget_bytes, wait_s)
    for name in shelf.names:
        await pool.add(name)
    await pool.load_default()
    service = ServiceState(ServeConfig(**settings))
    service.models = pool
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        try:
            yield client, pool
        finally:
            await pool.close()


async def said(client: httpx.AsyncClient, model: str) -> str:
    reply = await client.post("/v1/chat/completions", json={**QUESTION, "model": model})
    return reply.json()["choices"][0]["message"]["content"] if reply.status_code == 200 else reply.text


async def states(client: httpx.AsyncClient) -> dict[str, str]:
    listed = (await client.get("/v1/models")).json()["data"]
    return {row["id"]: row["state"] for row in listed if row["id"] in ("first", "second", "third")}


CALLS = {
    "/v1/chat/completions": {**QUESTION, "model": "second"},
    "/v1/completions": {"prompt": "a", "model": "second"},
    "/v1/fim/completions": {"prompt": "a", "suffix": "b", "model": "second"},
    "/v1/responses": {"input": "hi", "model": "second"},
    "/v1/messages": {**QUESTION, "max_tokens": 9, "model": "second"},
    "/api/chat": {**QUESTION, "stream": False, "model": "second:latest"},
    "/api/generate": {"prompt": "hi", "stream": False, "model": "second"},
    "/infill": {"input_prefix": "a", "input_suffix": "b", "model": "second"},
    "/openai/deployments/second/chat/completions": QUESTION,
    "/api/v0/chat/completions": {**QUESTION, "model": "second"},
    "/model/us.anthropic.second-v1:0/converse": {"messages": [{"role": "user", "content": [{"text": "hi"}]}]},
    "/endpoints/second/invocations": QUESTION,
    "/invocations": {**QUESTION, "model": "second"},
}


@pytest.mark.parametrize("path", CALLS)
async def test_every_protocol_chooses_the_model(path: str) -> None:
    shelf = Shelf()
    async with serving(shelf) as (client, _):
        reply = await client.post(path, json=CALLS[path])
        assert reply.status_code == 200, reply.text
        assert "I am second" in reply.text
        assert not shelf.backends["first"][0].requests and "third" not in shelf.backends


async def test_a_request_that_names_none_and_foreign_names_go_to_the_first() -> None:
    async with serving(Shelf(), aliases={"small": "third"}) as (client, _):
        for name in ("mercury-2", "claude-opus-9", "first", None):
            body = QUESTION if name is None else {**QUESTION, "model": name}
            reply = (await client.post("/v1/chat/completions", json=body)).json()
            assert reply["choices"][0]["message"]["content"] == "I am first"
        assert await said(client, "small") == "I am third"
        unknown = await client.post("/v1/chat/completions", json={**QUESTION, "model": "fourth"})
        assert unknown.status_code == 404
        assert "Known models: first, second, third, small" in unknown.json()["error"]["message"]


async def test_models_load_when_asked_and_the_lists_tell() -> None:
    shelf = Shelf(absent={"third"})
    async with serving(shelf) as (client, _):
        assert await states(client) == {"first": "loaded", "second": "on_disk", "third": "not_pulled"}
        assert [row["name"] for row in (await client.get("/api/ps")).json()["models"]] == ["first:latest"]
        assert [row["name"] for row in (await client.get("/api/tags")).json()["models"]] == [
            "first:latest",
            "second:latest",
        ]
        assert (await client.post("/api/show", json={"model": "second"})).status_code == 200
        assert await states(client) == {"first": "loaded", "second": "on_disk", "third": "not_pulled"}
        assert await said(client, "second") == "I am second"
        assert await states(client) == {"first": "loaded", "second": "loaded", "third": "not_pulled"}
        row = (await client.get("/v1/models/second")).json()
        assert (row["state"], row["memory_bytes"], row["context_length"]) == ("loaded", GB, 256)
        lm_studio = (await client.get("/api/v0/models")).json()["data"]
        assert [row["state"] for row in lm_studio] == ["loaded", "loaded", "not-loaded"]
        reply = await client.post("/v1/chat/completions", json={**QUESTION, "model": "third"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_pulled")
        assert "vermilion pull third" in reply.text


async def test_first_requests_at_once_load_a_model_once_while_others_are_answered() -> None:
    shelf = Shelf()
    async with serving(shelf) as (client, _):
        shelf.gate.clear()
        waiting = [asyncio.create_task(said(client, "second")) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert (await states(client))["second"] == "loading"
        assert await said(client, "first") == "I am first"
        assert not any(task.done() for task in waiting)
        shelf.gate.set()
        assert await asyncio.gather(*waiting) == ["I am second"] * 5
        assert len(shelf.backends["second"]) == 1


async def test_who_waits_too_long_is_asked_to_come_again() -> None:
    shelf = Shelf()
    async with serving(shelf, wait_s=0.1) as (client, _):
        shelf.gate.clear()
        reply = await client.post("/v1/chat/completions", json={**QUESTION, "model": "second"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_loading")
        assert int(reply.headers["retry-after"]) > 0
        shelf.gate.set()
        await asyncio.sleep(0.1)
        assert await said(client, "second") == "I am second"
        assert len(shelf.backends["second"]) == 1


async def test_the_model_that_was_used_longest_ago_makes_room() -> None:
    shelf = Shelf()
    async with serving(shelf, 2 * GB) as (client, pool):
        assert await said(client, "second") == "I am second"
        assert await said(client, "first") == "I am first"
        assert await said(client, "third") == "I am third"
        assert shelf.closed == ["second"]
        assert await states(client) == {"first": "loaded", "second": "on_disk", "third": "loaded"}
        assert pool.used_bytes == 2 * GB
        assert await said(client, "second") == "I am second"
        assert shelf.closed == ["second", "first"] and len(shelf.backends["second"]) == 2


async def test_a_busy_model_ends_its_answers_before_it_makes_room() -> None:
    shelf = Shelf(step_s=0.2)
    async with serving(shelf, GB) as (client, _):
        await said(client, "second")
        await said(client, "first")
        shelf.closed.clear()
        first = asyncio.create_task(said(client, "first"))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(said(client, "second"))
        await asyncio.sleep(0.05)
        late = asyncio.create_task(said(client, "first"))
        assert not shelf.closed
        assert await asyncio.gather(first, second, late) == ["I am first", "I am second", "I am first"]
        assert shelf.closed == ["first", "second"]


async def test_models_that_take_turns_under_load_all_answer() -> None:
    shelf = Shelf(step_s=0.001)
    async with serving(shelf, GB) as (client, _):
        names = [shelf.names[i * 7 % 3] for i in range(45)]
        assert await asyncio.gather(*(said(client, name) for name in names)) == [f"I am {n}" for n in names]
        open_now = {name: len(made) - shelf.closed.count(name) for name, made in shelf.backends.items()}
        assert sum(open_now.values()) == 1


async def test_a_busy_model_that_never_ends_does_not_hold_up_for_ever() -> None:
    shelf = Shelf()
    async with serving(shelf, GB, wait_s=0.2) as (client, pool):
        backend = shelf.backends["first"][0]
        backend.endless, backend.step_s = True, 0.01
        endless = asyncio.create_task(said(client, "first"))
        await asyncio.sleep(0.05)
        reply = await client.post("/v1/chat/completions", json={**QUESTION, "model": "second"})
        assert reply.status_code == 503
        await asyncio.sleep(0.3)
        assert not pool.models["first"].leaving and (await states(client))["first"] == "loaded"
        backend.endless = False
        await endless


async def test_a_model_that_does_not_load_hurts_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(faulty={"second"})
    async with serving(shelf) as (client, _):
        reply = await client.post("/v1/chat/completions", json={**QUESTION, "model": "second"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_unavailable")
        assert "second could not be loaded: second: a shard is missing." in reply.text
        row = (await client.get("/v1/models/second")).json()
        assert (row["state"], row["error"]) == ("failed", "second: a shard is missing.")
        assert await said(client, "first") == "I am first"
        shelf.faulty.clear()
        assert "a shard is missing" in await said(client, "second")
        monkeypatch.setattr("vermilion.serving.model_pool._RETRY_S", 0.0)
        assert await said(client, "second") == "I am second"
        assert "error" not in (await client.get("/v1/models/second")).json()


async def test_a_model_beyond_the_budget_is_refused_with_the_figures() -> None:
    async with serving(Shelf(), GB // 2) as (client, _):
        reply = await client.post("/v1/chat/completions", json={**QUESTION, "model": "second"})
        assert reply.status_code == 503
        assert "second needs 1.0 GB and engine.memory_budget is 0.5 GB" in reply.text


async def test_a_default_that_does_not_load_is_told_to_who_starts_the_service() -> None:
    pool = ModelPool(Shelf(faulty={"first"}).source())
    await pool.add("first")
    with pytest.raises(ModelFileError, match="a shard is missing"):
        await pool.load_default()
    with pytest.raises(ConfigError, match="other and first would both be served as first"):
        pool.source = replace(pool.source, describe=lambda name: Described(replace(MODEL, id="first"), 0))
        await pool.add("other")


async def test_adapters_come_back_with_their_model(tmp_path: Path) -> None:
    (tmp_path / "legal").mkdir()
    (tmp_path / "legal" / "adapter_config.json").write_text("{}")
    shelf = Shelf()
    async with serving(shelf, GB, adapter_folder=tmp_path) as (client, _):
        body = {"lora_name": "legal", "lora_path": "legal"}
        assert (await client.post("/v1/load_lora_adapter", json=body)).status_code == 200
        assert await said(client, "second") == "I am second"
        assert (await client.get("/v1/models/legal")).json()["parent"] == "first"
        assert await said(client, "legal") == "I am first"
        again = shelf.backends["first"][-1]
        assert len(shelf.backends["first"]) == 2 and again.requests[0].adapter == "legal"
        assert (await client.delete("/v1/models/legal")).status_code == 200
        assert (await client.get("/v1/models/legal")).status_code == 404


async def test_an_operator_loads_and_unloads() -> None:
    shelf = Shelf(names=("first",))
    async with serving(shelf) as (client, _):
        loaded = await client.post("/v1/models/load", json={"model": "second"})
        assert (loaded.json()["id"], loaded.json()["state"]) == ("second", "loaded")
        assert await said(client, "second") == "I am second"
        gone = await client.post("/v1/models/unload", json={"model": "second"})
        assert gone.json()["state"] == "on_disk" and shelf.closed == ["second"]
        assert await said(client, "second") == "I am second"
        unknown = await client.post("/v1/models/unload", json={"model": "third"})
        assert unknown.status_code == 404
    table = RouteTable(ROUTES)
    for name in ("pull", "load", "unload"):
        assert table.scopes("POST", f"/v1/models/{name}") == OPERATE


async def test_each_model_has_its_metrics() -> None:
    async with serving(Shelf()) as (client, _):
        await said(client, "second")
        lines = (await client.get("/metrics")).text.splitlines()
        for line in (
            'vermilion_model_loaded{model="second"} 1.0',
            'vermilion_model_loaded{model="third"} 0.0',
            'vermilion_model_memory_bytes{model="second"} 1e+09',
            'vermilion_model_requests_total{model="second"} 1.0',
            'vermilion_model_loads_total{model="first"} 1.0',
            "vermilion_kv_pages_total 18.0",
        ):
            assert line in lines


async def test_a_given_up_answer_is_counted_with_its_own_model() -> None:
    shelf = Shelf(step_s=0.02)
    async with serving(shelf) as (client, pool):
        await said(client, "second")
        backend = shelf.backends["second"][0]
        backend.endless = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.post("/v1/chat/completions", json={**QUESTION, "model": "second"})
        await asyncio.sleep(0.05)
        assert backend.cancelled == 1 and pool.models["second"].num_users == 0


async def test_a_model_that_lost_a_process_is_loaded_again_for_the_next_request() -> None:
    shelf = Shelf()
    async with serving(shelf) as (client, pool):
        shelf.backends["first"][0].failure = ProcessLost("rank 1 ended")
        reply = await client.post("/v1/chat/completions", json=QUESTION)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_process_lost")
        assert shelf.closed == ["first"] and reply.headers["retry-after"] == "30"
        assert await said(client, "first") == "I am first"
        assert pool.default.num_loads == 2
