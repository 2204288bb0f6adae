"""One call of a client: its body, its answers whole or as a stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.responses import Response

from vermilion.serving.backend import EventSource, Ready, Served
from vermilion.serving.generation import model_names
from vermilion.serving.generation.choices import Choice, fold
from vermilion.serving.generation.events import generate_events
from vermilion.serving.heavy_work import Result, offload
from vermilion.serving.http.connection import while_connected
from vermilion.serving.http.parsing import LARGE_BODY
from vermilion.serving.http.sse import FrameStream, StreamRenderer, frames
from vermilion.serving.jobs.internal_requests import BACKGROUND
from vermilion.serving.service_state import ServiceState
from vermilion.types import ModelInfo, Request


@dataclass(frozen=True, slots=True)
class RequestContext:
    """A request that the service has taken up."""

    http: HttpRequest
    service: ServiceState
    loaded: Served | None
    """None on a route that answers without a model."""
    wrap: Callable[[StreamRenderer], StreamRenderer] | None = None
    """How the streams of another protocol are told in this one's."""

    @property
    def served(self) -> Served:
        assert self.loaded is not None
        return self.loaded

    @property
    def model(self) -> ModelInfo:
        return self.served.backend.model

    def answering(self, name: str | None) -> str:
        """What answers to `name`, as replies call it."""
        return model_names.shown(name, self.model, self.service.config)

    async def offload(self, work: Callable[[], Result]) -> Result:
        """What `work` on the body gives, off the event loop where the body is large."""
        return await offload(work) if self.http.scope.get(LARGE_BODY) else work()

    async def ready(self, request: Request, text: str) -> Choice:
        """`text` as the answer, without the engine; counted like any other. Raises as `whole` does."""
        answers = generate_events(self.service, Ready(self.model, text), [request])
        (choice,) = await while_connected(self.http.receive, fold(answers, 1))
        return choice

    async def whole(
        self, requests: Sequence[Request], num_prompts: int = 1, source: EventSource | None = None
    ) -> list[Choice]:
        """The finished answers, in order, of the model or of `source`. Raises what the engine raises,
        `ClientGone` if nobody waits."""
        if BACKGROUND.get():
            requests = [replace(request, background=True) for request in requests]
        backend = source or self.served.backend
        answers = generate_events(self.service, backend, requests, num_prompts=num_prompts)
        return await while_connected(self.http.receive, fold(answers, len(requests)))

    def stream(self, requests: Sequence[Request], renderer: StreamRenderer, num_prompts: int = 1) -> Response:
        """The answers as they come."""
        if self.wrap is not None:
            renderer = self.wrap(renderer)
        answers = generate_events(
            self.service, self.served.backend, requests, self.service.config.keep_alive_s, num_prompts
        )
        return FrameStream(frames(answers, renderer, self.service.metrics), renderer.media_type)


def json_response(content: Mapping[str, Any] | Sequence[Any]) -> Response:
    """Text that is no Unicode, such as half of a surrogate pair, shows as a question mark."""
    encoded = json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
    return Response(encoded, media_type="application/json")
