"""A whole service around a model of two layers that can really be trained, with what it keeps in a folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import openai

from vermilion.config import EngineConfig
from vermilion.serving.http.server import ModelLoader, serve
from vermilion.serving.local_models import local_models
from vermilion.serving.serve_config import ServeConfig
from vermilion.serving.settings import Settings
from vermilion.training import toy
from vermilion.training.convert import convert
from vermilion.training.recipe import Recipe, Stage

WORDS = ["one", "two", "three", "four", "five"]
ENGINE = {"threads", "dtype"}


def make(folder: Path) -> Path:
    """A diffusion model that counts, converted in a few steps."""
    with patch.object(toy, "_NUMBERS", WORDS), patch.object(toy, "_STEPS", 60):
        recipe = Recipe("toy", folder, steps=5, rows=4, rank=4, stages=(Stage(1.0, 5),), plot=False)
        return convert(recipe)[0]


@asynccontextmanager
async def serving(model: Path, folder: Path, **settings: object) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client of a service on `model` that keeps its files in `folder`.

    `settings` are those of the service, and of the engine where ENGINE names them.
    """
    engine = {"kv_tokens": 2048, "threads": 1, "dtype": "float32"}
    engine |= {name: settings.pop(name) for name in ENGINE & settings.keys()}
    config = ServeConfig(port=0, data_folder=folder, **settings)  # type: ignore[arg-type]
    whole = Settings(str(model), config, EngineConfig(**engine))  # type: ignore[arg-type]
    async with client_of(config, partial(local_models, whole)) as client:
        yield client


@asynccontextmanager
async def client_of(config: ServeConfig, load: ModelLoader) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client of a service on whatever `load` gives."""
    opened: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    ended = asyncio.create_task(serve(config, load, stop, opened.set_result))
    url = await opened
    try:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            while True:
                try:
                    await client.models.list()
                except openai.InternalServerError:
                    await asyncio.sleep(0.05)
                else:
                    break
            yield client
    finally:
        stop.set()
        await ended
