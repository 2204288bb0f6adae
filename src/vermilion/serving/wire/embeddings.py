"""Embeddings, which this service does not make: every API's address for them says so."""

from __future__ import annotations

from fastapi.responses import Response

from vermilion.errors import VermilionError
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext
from vermilion.serving.http.routes import Route


class NoEmbeddings(VermilionError):
    status = 501
    kind = "invalid_request_error"
    code = "unsupported_endpoint"

    def __init__(self) -> None:
        super().__init__(
            "Embeddings are not served: a diffusion language model is not trained to give vectors of texts. "
            "Point the client's setting for embeddings at another server."
        )


async def embed(context: RequestContext) -> Response:
    raise NoEmbeddings


EMBEDDINGS = operation(
    "models",
    "No embeddings",
    "Always 501: clients that look for them are told why there are none.",
    None,
    {"error": {"message": "Embeddings are not served.", "code": NoEmbeddings.code}},
)
ROUTES = (
    Route("POST", "/v1/embeddings", embed, EMBEDDINGS, needs_model=False),
    *(
        Route("POST", path, embed, needs_model=False)
        for path in ("/api/v0/embeddings", "/api/embed", "/api/embeddings", "/embedding")
    ),
)
