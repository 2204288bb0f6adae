"""OpenAI's routes of fine-tuning."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi.responses import Response

from vermilion.errors import BadParameter, BadRequest
from vermilion.serving.generation import model_names
from vermilion.serving.http.auth import VISIT
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import JOBS, Route
from vermilion.serving.jobs import fine_tuning_jobs
from vermilion.serving.jobs.job_store import JobStore, Record
from vermilion.serving.jobs.pagination import page
from vermilion.serving.jobs.quotas import check_open, check_training

_MOST_LISTED, _USUAL = 100, 20


def _start(context: RequestContext, name: str) -> Path | None:
    """The adapter that a fine-tuned model goes on from; None for the model itself."""
    model = context.model
    model_names.check_model(name, model, context.service.config)
    adapter = model_names.adapter_of(name, model, context.service.config)
    if not adapter:
        return None
    store = context.service.offline().store
    for record in store.all("job", context.service.owner()):
        if record.own["name"] == adapter and record.body["status"] == "succeeded":
            return fine_tuning_jobs.adapter_folder(store, record)
    raise BadParameter("model", name, f"{model.id}, or a model that was fine-tuned here")


def _found(context: RequestContext, id: str) -> tuple[JobStore, Record]:
    store = context.service.offline().store
    return store, store.find("job", id, context.service.owner())


def _halted(context: RequestContext, id: str, wish: str, statuses: tuple[str, ...]) -> Response:
    _, record = _found(context, id)
    if record.body["status"] not in statuses:
        raise BadRequest(f"The job is {record.body['status']}; {wish} needs {' or '.join(statuses)}.", "id")
    context.service.offline().tuner.wish(record, wish)
    shown = {"cancel": "cancelled", "pause": "paused"}[wish]
    return json_response({**record.body, "status": shown})


async def create(context: RequestContext, body: fine_tuning_jobs.JobBody) -> Response:
    offline, owner = context.service.offline(), context.service.owner()
    start = _start(context, body.model)
    check_open(offline.store, "job", owner, fine_tuning_jobs.FINAL, context.service.config.organisation_jobs)
    num_bytes = fine_tuning_jobs.num_training_bytes(offline.store, owner, body)
    await check_training(context.service.accounts, num_bytes, body.num_epochs)
    visit = VISIT.get()
    record = await asyncio.to_thread(
        fine_tuning_jobs.create,
        offline.store,
        (owner, visit.key.id if visit else ""),
        body,
        (context.model.id, context.served.source),
        start,
    )
    offline.tuner.wake()
    return json_response(record.body)


async def listed(context: RequestContext) -> Response:
    rows = [record.body for record in context.service.offline().store.all("job", context.service.owner())]
    return json_response(page(context.http, rows, _MOST_LISTED, _USUAL))


async def job(context: RequestContext, id: str) -> Response:
    return json_response(_found(context, id)[1].body)


async def cancel(context: RequestContext, id: str) -> Response:
    return _halted(context, id, "cancel", ("queued", "running", "paused"))


async def pause(context: RequestContext, id: str) -> Response:
    return _halted(context, id, "pause", ("queued", "running"))


async def resume(context: RequestContext, id: str) -> Response:
    store, record = _found(context, id)
    if record.body["status"] != "paused":
        raise BadRequest(f"The job is {record.body['status']}; resume needs paused.", "id")
    record.body["status"] = "queued"
    store.save(record)
    fine_tuning_jobs.tell(store, record, "The job is queued again.")
    context.service.offline().tuner.wake()
    return json_response(record.body)


async def events(context: RequestContext, id: str) -> Response:
    rows = await asyncio.to_thread(fine_tuning_jobs.events, *_found(context, id))
    return json_response(page(context.http, rows, _MOST_LISTED, _USUAL))


async def checkpoints(context: RequestContext, id: str) -> Response:
    rows = await asyncio.to_thread(fine_tuning_jobs.checkpoints, *_found(context, id))
    return json_response(page(context.http, rows, _MOST_LISTED, _USUAL))


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
    {"A job": {"model": "smollm2-135m-diffusion", "training_file": "file-4f2a", "suffix": "support"}},
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


ROUTES = (
    Route("POST", "/v1/fine_tuning/jobs", create, CREATE, fine_tuning_jobs.JobBody, scopes=JOBS),
    Route("GET", "/v1/fine_tuning/jobs", listed, LIST, scopes=JOBS),
    Route("GET", "/v1/fine_tuning/jobs/{id}", job, RETRIEVE, scopes=JOBS),
    Route("POST", "/v1/fine_tuning/jobs/{id}/cancel", cancel, CANCEL, scopes=JOBS),
    Route("POST", "/v1/fine_tuning/jobs/{id}/pause", pause, PAUSE, scopes=JOBS),
    Route("POST", "/v1/fine_tuning/jobs/{id}/resume", resume, RESUME, scopes=JOBS),
    Route("GET", "/v1/fine_tuning/jobs/{id}/events", events, EVENTS, scopes=JOBS),
    Route("GET", "/v1/fine_tuning/jobs/{id}/checkpoints", checkpoints, CHECKPOINTS, scopes=JOBS),
)
