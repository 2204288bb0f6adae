"""What a call of the model has used, on its way into the ledger exactly once.

The ledger's row is on the disk before the last event of an answer is passed on, and so before any client
reads its usage. A call that is given up or fails is recorded with the tokens that had settled by the last
text that came out of the engine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from vermilion.accounts.transactions import LedgerRequest
from vermilion.errors import Draining, VermilionError
from vermilion.serving.http.auth import VISIT
from vermilion.types import Event, Finish, Request, Text, TokenInfo, Usage

_SERVER_ERROR = 500


class LedgerCall:
    """The row of one call in the ledger; does nothing on a service without accounts."""

    def __init__(self, model: str) -> None:
        """`model` is whose price counts."""
        self._visit = VISIT.get()
        self._model = model
        self._request: LedgerRequest | None = None

    @property
    def keeps_reply(self) -> bool:
        """Whether a repetition of the call will ask for its answer."""
        return self._request is not None and self._request.idempotency_key is not None

    async def begin(self, num_prompt_tokens: int) -> str | None:
        """Admits the call; the whole answer where its idempotency key already has one.

        Raises what `Visit.begin` raises.
        """
        if self._visit is None:
            return None
        request, replay = await self._visit.begin(num_prompt_tokens)
        if replay is None:
            self._request = request
        return replay

    async def settle(self, usage: Usage, reply: str | None = None) -> None:
        """The call is whole: returns once its usage is durable. Raises `AccountsUnavailable`."""
        if self._visit is None or self._request is None:
            return
        request, self._request = self._request, None
        await self._visit.settle(request, self._model, usage, reply)

    def end(self, usage: Usage, error: BaseException | None) -> None:
        """For a call that ends otherwise; does nothing after `settle`."""
        if self._visit is None or self._request is None:
            return
        request, self._request = self._request, None
        if usage == Usage() and _not_taken(error):
            self._visit.give_back(request)
            return
        outcome = "failed" if isinstance(error, Exception) else "aborted"
        self._visit.end(request, self._model, usage, outcome)


class Metering:
    """Of one call for text; does nothing on a service without accounts."""

    def __init__(self, model: str, requests: Sequence[Request], num_prompts: int = 1) -> None:
        """Each prompt has as many of the `requests`, one behind the other."""
        self._call = LedgerCall(requests[0].adapter or model)
        self._num_prompts = num_prompts
        firsts = requests[:: max(1, len(requests) // num_prompts)] if num_prompts > 1 else requests[:1]
        self._num_prompt_tokens = sum(len(request.prompt) + len(request.suffix) for request in firsts)
        self._usages = [Usage()] * len(requests)
        self._kept: list[tuple[int, Event]] | None = None

    async def begin(self) -> list[tuple[int, Event]]:
        """Admits the call; the whole answer where its idempotency key already has one.

        Raises what `Visit.begin` raises.
        """
        replay = await self._call.begin(self._num_prompt_tokens)
        if replay is not None:
            return _read(replay)
        if self._call.keeps_reply:
            self._kept = []
        return []

    def add(self, index: int, event: Event) -> None:
        """Counts an event of the engine, before it is passed on."""
        usage = None if not isinstance(event, Text | Finish) else event.usage
        if usage is not None:
            self._usages[index] = usage
        if self._kept is not None and isinstance(event, Text | Finish):
            self._kept.append((index, event))

    def begun(self, index: int, usage: Usage) -> None:
        """What a prompt has cost whose answer is given up; nothing where some of the answer came out."""
        if self._usages[index] == Usage():
            self._usages[index] = usage

    def spent(self, index: int) -> Usage:
        """By one of the answers so far."""
        return self._usages[index]

    async def settle(self) -> None:
        """Every answer is whole: returns once their usage is durable. Raises `AccountsUnavailable`."""
        reply = None if self._kept is None else _written(self._kept)
        await self._call.settle(together(self._usages, self._num_prompts), reply)

    def end(self, error: BaseException | None) -> None:
        """For a call that ends otherwise; does nothing after `settle`."""
        self._call.end(together(self._usages, self._num_prompts), error)


def _not_taken(error: BaseException | None) -> bool:
    """Whether the engine refused the request, rather than failed at it."""
    return isinstance(error, VermilionError) and (error.status < _SERVER_ERROR or isinstance(error, Draining))


def together(usages: Sequence[Usage], num_prompts: int = 1) -> Usage:
    """Of the choices of one call; those that share one of its prompts count it once."""
    if len(usages) == 1:
        return usages[0]
    size = max(1, len(usages) // num_prompts)
    groups = [usages[start : start + size] for start in range(0, len(usages), size)]
    firsts = [next((usage for usage in group if usage.prompt_tokens), group[0]) for group in groups]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in firsts),
        cached_tokens=sum(usage.cached_tokens for usage in firsts),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        passes=sum(usage.passes for usage in usages),
        edits=sum(usage.edits for usage in usages),
        drafted_tokens=sum(usage.drafted_tokens for usage in usages),
        accepted_tokens=sum(usage.accepted_tokens for usage in usages),
        cache=next((usage.cache for usage in usages if usage.cache), ""),
        cached_passes=sum(usage.cached_passes for usage in usages),
    )


def _written(events: Sequence[tuple[int, Event]]) -> str:
    rows = [(index, type(event).__name__, asdict(event)) for index, event in events]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":"), default=_latin)


def _latin(raw: bytes) -> str:
    return raw.decode("latin-1")


def _read(reply: str) -> list[tuple[int, Event]]:
    return [(index, _event(kind, fields)) for index, kind, fields in json.loads(reply)]


def _event(kind: str, fields: dict[str, object]) -> Event:
    usage = fields.pop("usage")
    spent = Usage(**usage) if isinstance(usage, dict) else None
    if kind == "Finish":
        assert spent is not None
        return Finish(usage=spent, **fields)  # type: ignore[arg-type]
    tokens = fields.pop("tokens")
    assert isinstance(tokens, list)
    infos = tuple(
        TokenInfo(
            **{
                **token,
                "raw": token["raw"].encode("latin-1"),
                "top": tuple((id, raw.encode("latin-1"), logprob) for id, raw, logprob in token["top"]),
            }
        )
        for token in tokens
    )
    return Text(tokens=infos, usage=spent, **fields)  # type: ignore[arg-type]
