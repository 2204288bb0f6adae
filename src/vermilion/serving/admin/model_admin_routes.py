"""Models come and go while the service runs: the catalogue, pulling, loading, unloading."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.responses import StreamingResponse

from vermilion.errors import BadRequest, ConfigError, ModelFileError, ModelNotFound, VermilionError
from vermilion.serving.http.error_rendering import openai_error
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import OPERATE, Route
from vermilion.serving.http.sse import EVENT_STREAM
from vermilion.serving.model_pool import ModelPool
from vermilion.serving.pooled_model import ModelLoading, PooledModel
from vermilion.serving.wire.model_routes import model_row
from vermilion.serving.wire.openai_bodies import WIRE

if TYPE_CHECKING:
    from vermilion.models.model_facts import ModelFacts

_PULLS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="pull")
"""Pulling takes minutes: it must not hold the threads that the service itself waits on."""
_LOOK_S = 0.25
"""How often a pull tells how far it is."""


class ModelBody(BaseModel):
    """Body of POST /v1/models/load and /v1/models/unload."""

    model_config = WIRE

    model: str = Field(
        min_length=1, description="A name of the catalogue, owner/name of the hub, or a served model."
    )


class PullBody(ModelBody):
    """Body of POST /v1/models/pull."""

    stream: bool = Field(True, description="Tell how far it is; otherwise one reply at the end.")


class PullFailed(VermilionError):
    """The hub, the way to it or the disk did not do what was asked."""

    status = 502
    code = "pull_failed"
    param = "model"


class PullStopped(Exception):
    """Nobody waits for the pull any more; what has arrived is kept."""


async def catalogue(context: RequestContext) -> Response:
    """What the catalogue lists, what is on this disk, and how it stands with what is served."""
    pool = _pool(context)
    states = {model.name: model.state for model in pool}
    machine, facts = await asyncio.to_thread(_known)
    machine |= {"budget_bytes": pool.budget_bytes, "used_bytes": pool.used_bytes}
    rows = [_catalogue_row(fact, states.get(fact.name)) for fact in facts]
    return json_response({"object": "list", "machine": machine, "data": rows})


async def pull(context: RequestContext, body: PullBody) -> Response:
    pool, name = _pool(context), body.model
    if not body.stream:
        try:
            await asyncio.shield(_started(name, [0, 0], threading.Event()))
        except ModelFileError as error:
            raise PullFailed(str(error)) from None
        await _added(pool, name)
        return json_response({"status": "success", "model": name})
    return StreamingResponse(_pulling(pool, name), media_type=EVENT_STREAM)


async def load(context: RequestContext, body: ModelBody) -> Response:
    pool = _pool(context)
    model = _served(pool, body.model)
    if model is None:
        model = await _added(pool, body.model)
    await pool.ensure(model)
    return json_response(model_row(model, model.model.id))


async def unload(context: RequestContext, body: ModelBody) -> Response:
    pool = _pool(context)
    model = _served(pool, body.model)
    if model is None:
        raise ModelNotFound(body.model[:100], tuple(pool.models))
    await pool.unload(model)
    return json_response(model_row(model, model.model.id))


def _pool(context: RequestContext) -> ModelPool:
    """Raises `ModelLoading` before the service has read its first model."""
    if context.service.models is None:
        raise ModelLoading()
    return context.service.models


async def _added(pool: ModelPool, name: str) -> PooledModel:
    """Here a name that another model answers to is the caller's mistake."""
    try:
        return await pool.add(name)
    except ConfigError as error:
        raise BadRequest(str(error), param="model") from None


def _served(pool: ModelPool, name: str) -> PooledModel | None:
    return next((model for model in pool if name in (model.name, model.info.id)), None)


def _known() -> tuple[dict[str, int], list[ModelFacts]]:
    """Of this machine and of every model; what it takes to know is imported when somebody asks."""
    from vermilion.models import catalog
    from vermilion.models.model_facts import facts_of, machine_json

    return machine_json(), [facts_of(entry) for entry in catalog.available()]


def _pull(name: str, on_progress: Callable[[int, int], None]) -> None:
    from vermilion.models import catalog

    catalog.pull(name, on_progress)


def _catalogue_row(fact: ModelFacts, state: str | None) -> dict[str, Any]:
    known = state or ("on_disk" if fact.pulled else "not_pulled")
    return {**fact.as_json(), "state": known, "served": state is not None}


def _started(name: str, progress: list[int], stop: threading.Event) -> asyncio.Future[Any]:
    def report(done: int, total: int) -> None:
        progress[:] = done, total
        if stop.is_set():
            raise PullStopped

    return asyncio.get_running_loop().run_in_executor(_PULLS, _pull, name, report)


async def _pulling(pool: ModelPool, name: str) -> AsyncGenerator[bytes, None]:
    progress, stop = [0, 0], threading.Event()
    pulling = _started(name, progress, stop)
    try:
        while not pulling.done():
            yield _frame({"status": "pulling", "completed": progress[0], "total": progress[1]})
            await asyncio.wait((pulling,), timeout=_LOOK_S)
        pulling.result()
        await _added(pool, name)
        yield _frame({"status": "success", "model": name})
    except VermilionError as error:
        yield _frame(openai_error(error))
    finally:
        stop.set()
        pulling.add_done_callback(lambda done: done.cancelled() or done.exception())
    yield b"data: [DONE]\n\n"


def _frame(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()


_NAME = "sdar:1.7b"
_ROW = {"id": _NAME, "object": "model", "state": "loaded", "memory_bytes": 3130000000}
CATALOGUE = operation(
    "models",
    "The catalogue of published models",
    "What each needs by the format of its weights, whether this machine has room for it, whether it is on "
    "the disk and whether it is served. `machine` has the memory, its budget and what loaded models take.",
    None,
    {
        "object": "list",
        "machine": {"memory_bytes": 17179869184},
        "data": [{"name": _NAME, "state": "on_disk"}],
    },
)
PULL = operation(
    "models",
    "Fetch a model and serve it",
    "It is loaded when it is first asked for. Events tell how far it is; leaving stops the fetch, and "
    "another goes on from there. What was fetched is checked against the published checksums.",
    {"By name": {"model": _NAME, "stream": False}},
    {"status": "success", "model": _NAME},
    {EVENT_STREAM: {"example": 'data: {"status":"pulling","completed":1,"total":2}\n\ndata: [DONE]\n\n'}},
)
LOAD = operation(
    "models",
    "Load a model",
    "Answers when it is there. A model that was not served before is served from now on. Where the memory "
    "budget has no room, the model that was used longest ago is unloaded.",
    {"By name": {"model": _NAME}},
    _ROW,
)
UNLOAD = operation(
    "models",
    "Take a model out of memory",
    "Answers that run on it go on to their end. It is loaded again when it is asked for.",
    {"By name": {"model": _NAME}},
    {**_ROW, "state": "on_disk"},
)


ROUTES = (
    Route("GET", "/v1/catalogue", catalogue, CATALOGUE, needs_model=False),
    Route("POST", "/v1/models/pull", pull, PULL, PullBody, OPERATE, needs_model=False),
    Route("POST", "/v1/models/load", load, LOAD, ModelBody, OPERATE, needs_model=False),
    Route("POST", "/v1/models/unload", unload, UNLOAD, ModelBody, OPERATE, needs_model=False),
)
