"""Azure: what clients of its AI models ask beside OpenAI's routes, and scoring of its ML endpoints."""

from __future__ import annotations

from fastapi.responses import Response

from vermilion.serving.generation import model_names
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import Route
from vermilion.serving.wire.body_dispatch import AnyBody, dispatched


async def info(context: RequestContext) -> Response:
    """Of the model in the path, or of the one that answers where none is named."""
    named = context.http.scope.get("deployment")
    model_names.check_model(named, context.model, context.service.config)
    return json_response(
        {
            "model_name": context.answering(named),
            "model_type": "chat-completion",
            "model_provider_name": "vermilion",
        }
    )


async def score(context: RequestContext, body: AnyBody) -> Response:
    return await dispatched(context, body.given)


INFO = operation(
    "azure",
    "What the model is",
    "As clients of Azure AI ask, also below `/models` and `/openai/deployments/ID`.",
    None,
    {
        "model_name": "smollm2-135m-diffusion",
        "model_type": "chat-completion",
        "model_provider_name": "vermilion",
    },
)
SCORE = operation(
    "azure",
    "Answer a body of any route",
    "What Azure's machine-learning endpoints ask of a container: the body's fields say which route is meant.",
    {
        "A question": {
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "max_tokens": 64,
        }
    },
    {"object": "chat.completion", "choices": [{"message": {"content": "Paris."}, "finish_reason": "stop"}]},
)


ROUTES = (
    Route("GET", "/info", info, INFO),
    Route("POST", "/score", score, SCORE, AnyBody),
)
