"""The models of a service: those that run in its own process are opened on a thread and kept in a pool."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from vermilion.config import EngineConfig
from vermilion.errors import ModelFileError
from vermilion.models.published_models import published_models
from vermilion.serving.backend import Served
from vermilion.serving.model_pool import Described, ModelPool, ModelSource
from vermilion.serving.pooled_model import Opened
from vermilion.serving.remote.remote_backend import remote_model
from vermilion.serving.settings import Settings
from vermilion.types import ModelInfo, Sampling

if TYPE_CHECKING:
    from vermilion.engine.service import Service

WARM_UP_TOKENS = 8


@asynccontextmanager
async def local_models(settings: Settings) -> AsyncIterator[ModelPool]:
    """The models, the first of them loaded; torch is imported, and the weights read, while the port already
    answers."""
    if settings.upstream.urls:
        async with remote_model(settings.upstream) as served:
            yield ModelPool.of(served)
        return
    budget = settings.engine.memory_budget_bytes or await asyncio.to_thread(_usual_budget, settings.engine)
    source = ModelSource(partial(open_model, settings), partial(describe_model, settings))
    pool = ModelPool(source, budget, settings.serve.model_wait_s)
    try:
        for name in settings.names:
            await pool.add(name)
        pool.default.adapters |= settings.adapters
        await pool.load_default()
        yield pool
    finally:
        await pool.close()


def _usual_budget(config: EngineConfig) -> int:
    """Four fifths of the memory where the models run: of the GPU, or of this machine."""
    from vermilion.models import machine

    gpu = 0 if config.device == "cpu" or config.backend == "native" else machine.gpu_memory_bytes()
    return (gpu or machine.memory_bytes()) * 4 // 5


def describe_model(settings: Settings, name: str) -> Described:
    from vermilion.engine import loading
    from vermilion.models import catalog

    if not catalog.is_pulled(name):
        row = published_models().get(name)
        return Described(ModelInfo(name, row.context_length if row else 0, 0, (), -1), 0, pulled=False)
    info, size_bytes = loading.describe_model(name, settings.engine)
    return Described(info, size_bytes)


def open_model(settings: Settings, name: str) -> Opened:
    from vermilion.decoding.presets import resolve
    from vermilion.engine.llm import LLM
    from vermilion.engine.loading import load_model
    from vermilion.engine.service import Service

    loaded = load_model(name, settings.engine)
    if name == settings.model:
        if loaded.template is None:
            raise ModelFileError(f"{name} has no chat template, and the service needs one to chat.")
        resolve(loaded.engine.model, settings.serve.default_preset)
    # The first forwards allocate and choose kernels; nobody should wait for that.
    LLM(loaded=loaded).generate("Once upon a time", Sampling(max_tokens=WARM_UP_TOKENS))
    _ = loaded.tokenizer.longest_token_bytes
    service = Service(loaded.engine, settings.engine.max_waiting)
    return Opened(Served(service, loaded.tokenizer, loaded.template, name), partial(_close, service))


def _close(service: Service) -> None:
    """Ends the engine's thread and gives its memory back."""
    service.close()
    # What was there when the service was ready is frozen, and a model is full of circles.
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
