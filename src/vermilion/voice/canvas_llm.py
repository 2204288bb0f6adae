"""pipecat's client of diffusion models, with the canvas shown while it settles.

Text goes on as it settles, exactly as without the canvas; only where a page watches is this used in place of
pipecat's own `InceptionLLMService`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from pipecat.adapters.llm.services.open_ai_adapter import OpenAILLMInvocationParams
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.inception.llm import InceptionLLMService

ShowCanvas = Callable[[dict[str, Any]], Awaitable[None]]
_SHOWN = ("settled", "masked", "edited", "pass")


class CanvasLLMService(InceptionLLMService):
    """Asks for the canvas of every pass and gives it to `show`."""

    def __init__(self, *, show: ShowCanvas, **options: Any) -> None:
        super().__init__(**options)
        self._show = show

    def build_chat_completion_params(self, params_from_context: OpenAILLMInvocationParams) -> dict[str, Any]:
        params: dict[str, Any] = super().build_chat_completion_params(params_from_context)
        self._merge_extra_body(params, {"diffusing": True})
        return params

    async def get_chat_completions(self, context: LLMContext) -> Any:
        return _SettledStream(await super().get_chat_completions(context), self._show)


class _SettledStream:
    """A stream of canvases as one of settled text; closing it closes the request."""

    def __init__(self, stream: Any, show: ShowCanvas) -> None:
        self._stream = stream
        self._show = show
        self._chunks = self._settled()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._chunks

    async def close(self) -> None:
        await self._stream.close()

    async def _settled(self) -> AsyncIterator[Any]:
        told = 0
        async for chunk in self._stream:
            delta = chunk.choices[0].delta if chunk.choices else None
            meta = getattr(chunk, "diffusion_meta", None)
            if delta is not None and meta and not delta.tool_calls:
                canvas = delta.content or ""
                await self._show({"text": canvas, **{name: meta.get(name, []) for name in _SHOWN}})
                settled = max((end for _, end in meta.get("settled", [])), default=0)
                delta.content = canvas[told:settled]
                told = max(told, settled)
            yield chunk
