"""OpenAI's routes of fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from vermilion.errors import BadParameter, BadRequest
from vermilion.serving.generation import model_names
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.parsing import read
from vermilion.serving.http.request_context import json_response
from vermilion.serving.jobs import fine_tuning_jobs
from vermilion.serving.jobs.job_store import JobStore, Record
from vermilion.serving.jobs.pagination import page
from vermilion.serving.service_state import ServiceState

_MOST_LISTED, _USUAL = 100, 20


def _start(store: JobStore, owner: str, name: str, service: ServiceState) -> Path | None:
    """The adapter that a fine-tuned model goes on from; None for the model itself."""
    model = service.admit().backend.model
    model_names.check_model(name, model, service.config)
    adapter = model_names.adapter_of(name, model, service.config)
    if not adapter:
        return None
    for record in store.all("job", owner):
        if record.own["name"] == adapter and record.body["status"] == "succeeded":
            return fine_tuning_jobs.adapter_folder(store, record)
    raise BadParameter("model", name, f"{model.id}, or a model that was fine-tuned here")


def add_routes(router: APIRouter, service: ServiceState) -> None:
    def found(id: str) -> tuple[JobStore, Record]:
        store = service.offline().store
        return store, store.find("job", id, service.owner())

    def halted(id: str, wish: str, statuses: tuple[str, ...]) -> Response:
        _, record = found(id)
        if record.body["status"] not in statuses:
            raise BadRequest(
                f"The job is {record.body['status']}; {wish} needs {' or '.join(statuses)}.", "id"
            )
        service.offline().tuner.wish(record, wish)
        shown = {"cancel": "cancelled", "pause": "paused"}[wish]
        return json_response({**record.body, "status": shown})

    @router.post("/v1/fine_tuning/jobs", **CREATE)
    async def create(http: HttpRequest) -> Response:
        offline, owner = service.offline(), service.owner()
        body = await read(http, fine_tuning_jobs.JobBody, service.config.max_body_bytes)
        start = _start(offline.store, owner, body.model, service)
        base_id = service.admit().backend.model.id
        record = fine_tuning_jobs.create(offline.store, owner, body, base_id, start)
        offline.tuner.wake()
        return json_response(record.body)

    @router.get("/v1/fine_tuning/jobs", **LIST)
    async def listed(http: HttpRequest) -> Response:
        rows = [record.body for record in service.offline().store.all("job", service.owner())]
        return json_response(page(http, rows, _MOST_LISTED, _USUAL))

    @router.get("/v1/fine_tuning/jobs/{id}", **RETRIEVE)
    async def job(id: str) -> Response:
        return json_response(found(id)[1].body)

    @router.post("/v1/fine_tuning/jobs/{id}/cancel", **CANCEL)
    async def cancel(id: str) -> Response:
        return halted(id, "cancel", ("queued", "running", "paused"))

    @router.post("/v1/fine_tuning/jobs/{id}/pause", **PAUSE)
    async def pause(id: str) -> Response:
        return halted(id, "pause", ("queued", "running"))

    @router.post("/v1/fine_tuning/jobs/{id}/resume", **RESUME)
    async def resume(id: str) -> Response:
        store, record = found(id)
        if record.body["status"] != "paused":
            raise BadRequest(f"The job is {record.body['status']}; resume needs paused.", "id")
        record.body["status"] = "queued"
        store.save(record)
        fine_tuning_jobs.tell(store, record, "The job is queued again.")
        service.offline().tuner.wake()
        return json_response(record.body)

    @router.get("/v1/fine_tuning/jobs/{id}/events", **EVENTS)
    async def events(http: HttpRequest, id: str) -> Response:
        return json_response(page(http, fine_tuning_jobs.events(*found(id)), _MOST_LISTED, _USUAL))

    @router.get("/v1/fine_tuning/jobs/{id}/checkpoints", **CHECKPOINTS)
    async def checkpoints(http: HttpRequest, id: str) -> Response:
        return json_response(page(http, fine_tuning_jobs.checkpoints(*found(id)), _MOST_LISTED, _USUAL))


_SETTINGS = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.0}
JOB: dict[str, Any] = {
    "id": "ftjob-4f2a",
    "object": "fine_tuning.job",
    "created_at": 1767225600,
    "model": "smollm2-135m-diffusion",
    "fine_tuned_model": None,
    "finished_at": None,
    "error": None,
    "hyperparameters": _SETTINGS,
    "organization_id": "org-local",
    "result_files": [],
    "seed": 42,
    "status": "queued",
    "trained_tokens": None,
    "training_file": "file-4f2a",
    "validation_file": None,
    "estimated_finish": None,
    "integrations": [],
    "metadata": None,
    "method": {"type": "supervised", "supervised": {"hyperparameters": _SETTINGS}},
}
_EVENT = {
    "id": "ftevent-4f2a",
    "object": "fine_tuning.job.event",
    "created_at": 1767225600,
    "level": "info",
    "message": "Step 10: train loss 1.532",
    "type": "metrics",
    "data": {"step": 10, "train_loss": 1.532},
}
_CHECKPOINT = {
    "id": "ftckpt-4f2a-100",
    "object": "fine_tuning.job.checkpoint",
    "created_at": 1767225600,
    "fine_tuning_job_id": "ftjob-4f2a",
    "fine_tuned_model_checkpoint": "ft:smollm2-135m-diffusion:support:9f2c01ab:ckpt-step-100",
    "step_number": 100,
    "metrics": {"step": 100, "train_loss": 1.2},
}


def _list(row: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [row], "has_more": False}


CREATE = operation(
    "fine-tuning",
    "Fine-tune the model",
    "Queues a run of `vermilion train`. When it has succeeded, `fine_tuned_model` is served at once, and "
    "again after every restart.",
    (
        "JobBody",
        {"A job": {"model": "smollm2-135m-diffusion", "training_file": "file-4f2a", "suffix": "support"}},
    ),
    JOB,
)
LIST = operation("fine-tuning", "List the jobs", "", None, _list(JOB))
RETRIEVE = operation("fine-tuning", "One job", "", None, JOB)
CANCEL = operation("fine-tuning", "Cancel a job", "", None, {**JOB, "status": "cancelled"})
PAUSE = operation("fine-tuning", "Pause a job", "It saves its state.", None, {**JOB, "status": "paused"})
RESUME = operation("fine-tuning", "Go on with a paused job", "", None, JOB)
EVENTS = operation("fine-tuning", "What has happened in a job", "", None, _list(_EVENT))
CHECKPOINTS = operation(
    "fine-tuning", "What a job has saved on its way", "The last two saves.", None, _list(_CHECKPOINT)
)
