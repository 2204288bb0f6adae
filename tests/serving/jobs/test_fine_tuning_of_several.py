"""Where several models are served a fine-tuning job is of the one that it names."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from serving.fake import MODEL, FakeBackend, fake_service, served
from vermilion.serving.http.app import create_app
from vermilion.serving.jobs import fine_tuning_jobs
from vermilion.serving.jobs.background import BackgroundJobs
from vermilion.serving.jobs.batch_worker import BatchWorker
from vermilion.serving.jobs.fine_tuning_worker import FineTuningWorker
from vermilion.serving.jobs.job_store import JobStore
from vermilion.serving.model_pool import ModelPool

pytestmark = pytest.mark.anyio
EXAMPLE = b'{"prompt": "a", "response": "b"}\n' * 10


async def test_a_job_tunes_and_is_served_by_the_model_that_it_names(tmp_path: Path) -> None:
    first, second = FakeBackend(), FakeBackend(model=replace(MODEL, id="other"))
    service = fake_service(first)
    service.models = ModelPool.of(
        replace(served(first), source="a"), replace(served(second), source="folder/b")
    )
    app, store = create_app(service), JobStore(tmp_path)
    tuner = FineTuningWorker(store, service.models, None)
    service.background = BackgroundJobs(store, tuner, BatchWorker(store, app, None))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        upload = {"file": ("examples.jsonl", EXAMPLE)}
        file = (await client.post("/v1/files", files=upload, data={"purpose": "fine-tune"})).json()["id"]
        asked = {"model": "other", "training_file": file}
        job = (await client.post("/v1/fine_tuning/jobs", json=asked)).json()
        assert job["model"] == "other" and job["status"] == "queued"
        refused = await client.post("/v1/fine_tuning/jobs", json={**asked, "model": "third"})
        assert refused.status_code == 404
    (record,) = store.all("job")
    assert record.own["name"].startswith("ft:other:")
    arguments = fine_tuning_jobs.train_arguments(store, record, record.own["source"])
    assert arguments[arguments.index("--model") + 1] == "folder/b"
    # As after a restart of the service: what the job made is there.
    folder = fine_tuning_jobs.adapter_folder(store, record)
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    record.body["status"] = "succeeded"
    store.save(record)
    running = asyncio.create_task(tuner.run())
    while not second.model.adapters:
        await asyncio.sleep(0.01)
    running.cancel()
    assert (first.model.adapters, second.model.adapters) == ((), (record.own["name"],))
    # A service that serves that model no longer says so and goes on.
    alone = FineTuningWorker(store, ModelPool.of(replace(served(FakeBackend()), source="a")), None)
    task = asyncio.create_task(alone.run())
    await asyncio.sleep(0.1)
    assert not task.done()
    task.cancel()
    store.close()
