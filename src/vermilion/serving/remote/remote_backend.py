"""A backend whose model runs on other servers."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import httpx

from vermilion.errors import BadRequest, EngineFailure, Overloaded, VermilionError
from vermilion.serving.backend import Served
from vermilion.serving.remote.estimated_tokens import EstimatedTokenizer, PassedTemplate
from vermilion.serving.remote.remote_answer import RemoteAnswer
from vermilion.serving.remote.remote_errors import UpstreamCannot, UpstreamFailed, UpstreamUnavailable
from vermilion.serving.remote.remote_requests import upstream_body
from vermilion.serving.remote.upstream_config import UpstreamConfig
from vermilion.serving.remote.upstreams import Upstream, Upstreams
from vermilion.types import Decoding, EngineStats, Event, ModelInfo, Request, Usage

_USUAL_CONTEXT = 131_072
_VOCABULARY = 2**62
_CALLERS_MISTAKES = (400, 413, 422)
_BUSY = 429
_log = logging.getLogger(__name__)


class RemoteBackend:
    """Answers with what an upstream says; with another's before its first word, where one fails."""

    def __init__(self, upstreams: Upstreams, model: ModelInfo) -> None:
        self.model = model
        self._upstreams = upstreams
        self._prompts: dict[str, int] = {}

    def stats(self) -> EngineStats:
        return EngineStats(running=self._upstreams.num_running)

    def prefilled(self, request_id: str) -> Usage:
        return Usage(sum(size for id, size in self._prompts.items() if id.startswith(request_id)))

    async def load_adapter(self, name: str, folder: Path) -> None:
        raise UpstreamCannot("adapter", "the model runs on another server; load it there.")

    async def unload_adapter(self, name: str) -> None:
        raise UpstreamCannot("adapter", "the model runs on another server; unload it there.")

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """The events of one answer.

        Raises `UpstreamCannot`, `BadRequest` with an upstream's own words, `Overloaded` where all are busy,
        `UpstreamUnavailable`, and `EngineFailure` for an answer that was cut off.
        """
        failures: list[VermilionError] = []
        for one in self._upstreams.candidates():
            told = False
            try:
                with self._upstreams.using(one):
                    async with aclosing(self._answer(one, request)) as events:
                        async for event in events:
                            told = True
                            yield event
                return
            except (UpstreamFailed, UpstreamCannot) as error:
                failures.append(error)
                if isinstance(error, UpstreamFailed) and not error.busy:
                    self._upstreams.set_aside(one, str(error))
                if told:
                    raise EngineFailure(
                        "The server that runs the model ended in the middle of this answer. Try again."
                    ) from None
        raise _reason(failures)

    async def _answer(self, one: Upstream, request: Request) -> AsyncGenerator[Event, None]:
        """Of one upstream. Raises `UpstreamFailed`, `UpstreamCannot` and `BadRequest`."""
        route, body = upstream_body(request, one, self.model.id)
        answer = RemoteAnswer(request)
        self._prompts[request.id] = len(request.prompt) + len(request.suffix)
        try:
            asked = self._upstreams.client.stream("POST", f"{one.base}/{route}", json=body)
            async with asked as reply:
                if reply.status_code != httpx.codes.OK:
                    raise _refusal(reply.status_code, await reply.aread())
                async for line in reply.aiter_lines():
                    if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
                        for event in answer.read(data):
                            yield event
            for event in answer.finish():
                yield event
        except httpx.HTTPError as error:
            raise UpstreamFailed(type(error).__name__) from None
        finally:
            self._prompts.pop(request.id, None)


def _refusal(status: int, content: bytes) -> VermilionError:
    """What an upstream's refusal means here."""
    told: dict[str, Any] = {}
    with suppress(ValueError, AttributeError):
        read = json.loads(content)
        told = read.get("error") or read
    message = (
        str(told.get("message") or content[:200].decode("utf-8", "replace")) if told else f"HTTP {status}"
    )
    if status in _CALLERS_MISTAKES:
        code = told.get("code") if isinstance(told.get("code"), str) else "invalid_value"
        param = told.get("param") if isinstance(told.get("param"), str) else None
        return BadRequest(f"The server that runs the model refuses this: {message}", param, code)
    if status == httpx.codes.NOT_IMPLEMENTED:
        return UpstreamCannot("model", message)
    return UpstreamFailed(f"HTTP {status}: {message}", busy=status == _BUSY)


def _reason(failures: list[VermilionError]) -> VermilionError:
    """What the caller is told when no upstream has answered."""
    cannot = next((error for error in failures if isinstance(error, UpstreamCannot)), None)
    if cannot is not None:
        return cannot
    if all(isinstance(error, UpstreamFailed) and error.busy for error in failures):
        return Overloaded("Every server that runs the model is busy. Try again shortly.")
    return UpstreamUnavailable("None of the servers that run the model answers. Try again shortly.")


def model_info(one: Upstream, id: str) -> ModelInfo:
    """What an upstream's list of models says."""
    row = one.row
    meta = row.get("meta") or {}
    lengths = (
        row.get("context_length"),
        row.get("max_model_len"),
        meta.get("n_ctx"),
        meta.get("n_ctx_train"),
    )
    length = next((value for value in lengths if isinstance(value, int) and value > 0), _USUAL_CONTEXT)
    presets = {name: Decoding(decoder=kind) for name, kind in (row.get("presets") or {}).items()}
    return ModelInfo(
        id=id,
        context_length=length,
        vocab_size=_VOCABULARY,
        eos_token_ids=(),
        mask_token_id=-1,
        created=int(row.get("created") or 0),
        description=f"Runs on another server ({one.kind}).",
        decoders=tuple(row.get("decoders") or ()),
        presets=presets or {"upstream": Decoding()},
        default_preset=str(row.get("default_preset") or "upstream"),
    )


@asynccontextmanager
async def remote_model(config: UpstreamConfig) -> AsyncIterator[Served]:
    """The model of the upstreams, served here once one of them answers."""
    upstreams = Upstreams(config)
    try:
        one = await upstreams.found()
        watching = asyncio.create_task(upstreams.watch())
        try:
            info = model_info(one, upstreams.model)
            _log.info("%s runs on %d servers", info.id, len(config.bases))
            yield Served(
                RemoteBackend(upstreams, info),
                cast("Any", EstimatedTokenizer()),
                cast("Any", PassedTemplate()),
                forwards=True,
            )
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    finally:
        await upstreams.close()
