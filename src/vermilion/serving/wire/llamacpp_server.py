"""llama.cpp's routes about the server: its properties, its slots, its chat template."""

from __future__ import annotations

from typing import Any

from fastapi.responses import Response
from pydantic import BaseModel, Field

import vermilion
from vermilion.serving.generation import chat
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import Route
from vermilion.serving.wire.openai_bodies import WIRE, ChatBody, Message


class ApplyTemplateBody(BaseModel):
    """Body of POST /apply-template."""

    model_config = WIRE

    messages: list[Message] = Field(min_length=1, description="The conversation so far, oldest first.")


async def properties(context: RequestContext) -> Response:
    model, template = context.model, context.served.template
    return json_response(
        {
            "default_generation_settings": {"n_ctx": model.context_length},
            "total_slots": len(_slots(context)),
            "model_alias": model.id,
            "model_path": model.id,
            "modalities": {"vision": False, "audio": False},
            "chat_template": template.source if template else "",
            "build_info": f"vermilion {vermilion.__version__}",
        }
    )


async def slots(context: RequestContext) -> Response:
    return json_response(_slots(context))


def _slots(context: RequestContext) -> list[dict[str, Any]]:
    """One for each running request, and a free one: requests are batched, not given a slot."""
    running = context.served.backend.stats().running
    return [
        {"id": number, "n_ctx": context.model.context_length, "is_processing": number < running}
        for number in range(running + 1)
    ]


async def apply_template(context: RequestContext, body: ApplyTemplateBody) -> Response:
    asked = ChatBody.model_construct(messages=body.messages)
    return json_response({"prompt": await chat.chat_text(asked, context.served)})


_SLOT = {"id": 0, "n_ctx": 8192, "is_processing": False}
PROPERTIES = operation(
    "llama.cpp",
    "What the server is",
    "",
    None,
    {
        "default_generation_settings": {"n_ctx": 8192},
        "total_slots": 1,
        "model_alias": "smollm2-135m-diffusion",
    },
)
SLOTS = operation("llama.cpp", "What runs", "A row for each running request, and a free one.", None, [_SLOT])
APPLY_TEMPLATE = operation(
    "llama.cpp",
    "A conversation as the text that the model reads",
    "",
    {"A question": {"messages": [{"role": "user", "content": "Hi"}]}},
    {"prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"},
)
ROUTES = (
    Route("GET", "/props", properties, PROPERTIES),
    Route("GET", "/slots", slots, SLOTS),
    Route("POST", "/apply-template", apply_template, APPLY_TEMPLATE, ApplyTemplateBody),
)
