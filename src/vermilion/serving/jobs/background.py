"""What a service keeps and works on for later: its store, its queue of jobs, its batches."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from starlette.types import ASGIApp

from vermilion.accounts.gate import Accounts
from vermilion.errors import ConfigError, VermilionError
from vermilion.serving.jobs.batch_worker import BatchWorker
from vermilion.serving.jobs.fine_tuning_worker import FineTuningWorker
from vermilion.serving.jobs.job_store import JobStore
from vermilion.serving.model_pool import ModelPool
from vermilion.serving.serve_config import ServeConfig

_log = logging.getLogger(__name__)


class NoBackgroundJobs(VermilionError):
    """The service keeps no files."""

    status = 503
    code = "no_storage"

    def __init__(self, reason: str) -> None:
        super().__init__(f"This service keeps no files, jobs or batches: {reason}")


@dataclass(frozen=True, slots=True)
class BackgroundJobs:
    """Lives while a model is served."""

    store: JobStore
    tuner: FineTuningWorker
    batcher: BatchWorker

    def forget(self, name: str) -> None:
        """A fine-tuned model that was deleted stays so after a restart."""
        for record in self.store.all("job"):
            if record.own["name"] == name:
                record.own["deleted"] = True
                self.store.save(record)


@asynccontextmanager
async def opened(
    config: ServeConfig, models: ModelPool, app: ASGIApp, accounts: Accounts | None
) -> AsyncIterator[BackgroundJobs | NoBackgroundJobs]:
    """The background, with its queues running; why there is none, where there is none. Batches ask `app`."""
    served = models.default.served
    assert served is not None
    folder = config.data_folder or (_default_folder() if served.source else None)
    if folder is None:
        yield NoBackgroundJobs("set serve.data_folder.")
        return
    try:
        store = await asyncio.to_thread(JobStore, folder)
    except ConfigError as error:
        _log.warning("%s", error)
        yield NoBackgroundJobs(str(error))
        return
    background = BackgroundJobs(
        store, FineTuningWorker(store, models, accounts), BatchWorker(store, app, accounts)
    )
    working = [asyncio.create_task(background.tuner.run()), asyncio.create_task(background.batcher.run())]
    try:
        yield background
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        store.close()


def _default_folder() -> Path:
    home = os.environ.get("VERMILION_HOME")
    return (Path(home) if home else platformdirs.user_data_path("vermilion")) / "service"
