"""Adapters come and go while the service runs: by vLLM's two routes, and as OpenAI deletes a tuned model."""

from __future__ import annotations

from fastapi.responses import Response
from pydantic import BaseModel, Field

from vermilion.errors import BadParameter, BadRequest, ModelFileError
from vermilion.serving.generation import model_names
from vermilion.serving.http.auth import VISIT
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import MANAGE, OPERATE, Route
from vermilion.serving.jobs.background import BackgroundJobs
from vermilion.serving.wire.openai_bodies import WIRE


class LoadBody(BaseModel):
    """Body of POST /v1/load_lora_adapter."""

    model_config = WIRE

    lora_name: str = Field(min_length=1, description="The name under which it is served.")
    lora_path: str = Field(min_length=1, description="Its folder inside `serve.adapter_folder`.")
    model: str | None = Field(None, description="Which of several served models it is of; none: the first.")


class UnloadBody(BaseModel):
    """Body of POST /v1/unload_lora_adapter."""

    model_config = WIRE

    lora_name: str = Field(min_length=1)


class AdapterRefused(BadRequest):
    """An adapter's files are not what this model needs."""


async def load(context: RequestContext, body: LoadBody) -> Response:
    name, root = body.lora_name, context.service.config.adapter_folder
    models = [model for _, model in context.service.listed()]
    others = [other for model in models if model.id != context.model.id for other in model.adapters]
    taken = [*(model.id for model in models), *others]
    model_names.check_adapter_name(name, taken, context.service.config)
    if root is None:
        raise BadRequest("This service was started without serve.adapter_folder: it loads no adapters.")
    folder = (root / body.lora_path).resolve()
    if not folder.is_relative_to(root.resolve()):
        raise BadParameter("lora_path", body.lora_path, "a folder inside serve.adapter_folder")
    try:
        with context.service.changing_adapter(name):
            await context.served.backend.load_adapter(name, folder)
    except ModelFileError as error:
        raise AdapterRefused(str(error), "lora_path", "invalid_adapter") from None
    return json_response({"id": name, "object": "model", "parent": context.model.id, "loaded": True})


async def unload(context: RequestContext, body: UnloadBody) -> Response:
    name = body.lora_name
    pooled, _ = context.service.find(name)
    with context.service.changing_adapter(name):
        await pooled.unload_adapter(name)
    return json_response({"id": name, "object": "model", "loaded": False})


async def delete(context: RequestContext, id: str) -> Response:
    pooled, model = context.service.find(id)
    name = model_names.adapter_of(id, model, context.service.config)
    if not name:
        raise BadParameter("model", id, ", ".join(model.adapters) or "no model: there is one")
    visit = VISIT.get()
    own = context.service.adapter_owners.get(name) == context.service.owner()
    if visit is not None and not own:
        # An adapter that the operator has loaded is everybody's.
        visit.require(*OPERATE)
    with context.service.changing_adapter(name):
        await pooled.unload_adapter(name)
    if isinstance(context.service.background, BackgroundJobs):
        context.service.background.forget(name)
    return json_response({"id": name, "object": "model", "deleted": True})


_LOADED = {"id": "legal", "object": "model", "parent": "smollm2-135m-diffusion", "loaded": True}
LOAD = operation(
    "adapters",
    "Serve one more adapter",
    "A LoRA in PEFT's layout on any of the seven projections. Answers that are running go on. One that does "
    "not fit the model is refused, and the message names the tensor.",
    {"A folder": {"lora_name": "legal", "lora_path": "legal-2"}},
    _LOADED,
)
UNLOAD = operation(
    "adapters",
    "Serve an adapter no longer",
    "Answers that run on it go on to their end.",
    {"One": {"lora_name": "legal"}},
    {"id": "legal", "object": "model", "loaded": False},
)
DELETE = operation(
    "adapters",
    "Delete a fine-tuned model",
    "It is unloaded; what it was made from, and other adapters, stay.",
    None,
    {"id": "ft:smollm2-135m-diffusion:legal:9f2c", "object": "model", "deleted": True},
)


ROUTES = (
    Route("POST", "/v1/load_lora_adapter", load, LOAD, LoadBody, OPERATE),
    Route("POST", "/v1/unload_lora_adapter", unload, UNLOAD, UnloadBody, OPERATE),
    Route("DELETE", "/v1/models/{id:path}", delete, DELETE, None, (*MANAGE, *OPERATE)),
)
