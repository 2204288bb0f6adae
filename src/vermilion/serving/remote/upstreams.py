"""The servers behind this one: which of them answer, which is asked next."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from vermilion.errors import ModelNotFound, Overloaded
from vermilion.serving.remote.remote_errors import UpstreamUnavailable
from vermilion.serving.remote.upstream_config import UPSTREAM_KEY, UpstreamConfig

_KNOWN = ("vermilion", "vllm", "sglang", "llamacpp")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Upstream:
    """One server and what is known of it."""

    base: str
    healthy: bool = False
    kind: str = ""
    """One of `_KNOWN` by what it says of its model; `other` for another, nothing before it has said so."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """Of its list of models."""
    running: int = 0
    trouble: str = ""
    """Why it was not found at the last probe."""


class Upstreams:
    """All of them, in the order in which they were given. `close` ends the connections."""

    def __init__(self, config: UpstreamConfig) -> None:
        key = os.environ.get(UPSTREAM_KEY, "")
        timeout = httpx.Timeout(config.silence_timeout_s, connect=config.connect_timeout_s)
        self.client = httpx.AsyncClient(
            timeout=timeout,
            # One that a server closes while it is asked again looks like a server that failed.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            headers={"authorization": f"Bearer {key}"} if key else {},
            # An address is the operator's; nothing on the way may turn it into another.
            follow_redirects=False,
            trust_env=False,
        )
        self.config = config
        self.model = config.model
        self._all = [Upstream(base) for base in config.bases]
        self._turn = 0

    async def close(self) -> None:
        await self.client.aclose()

    async def found(self) -> Upstream:
        """The first that answers, however long that takes. Raises `ModelNotFound` for a model that those
        which answer do not serve."""
        while True:
            await self.probe()
            if healthy := next((one for one in self._all if one.healthy), None):
                return healthy
            names = [name for one in self._all for name in one.row.get("others", ())]
            if names:
                raise ModelNotFound(self.model, tuple(names))
            await asyncio.sleep(self.config.probe_s)

    async def watch(self) -> None:
        """Asks those that have failed whether they are back, until it is cancelled."""
        while True:
            await asyncio.sleep(self.config.probe_s)
            await self.probe()

    async def probe(self) -> None:
        for one in self._all:
            if not one.healthy:
                await self._ask(one)

    async def _ask(self, one: Upstream) -> None:
        try:
            reply = await self.client.get(f"{one.base}/models", timeout=self.config.connect_timeout_s)
            named = {row["id"]: row for row in reply.json()["data"]}
        except httpx.HTTPError as error:
            self._note(one, f"{type(error).__name__}: {error}")
            return
        except (ValueError, KeyError, TypeError):
            self._note(one, f"HTTP {reply.status_code} and no list of models")
            return
        self.model = self.model or next(iter(named), "")
        if self.model not in named:
            one.row = {"others": list(named)}
            self._note(one, f"it does not serve {self.model}")
            return
        one.row = named[self.model]
        owner = str(one.row.get("owned_by"))
        one.kind = owner if owner in _KNOWN else "other"
        one.healthy, one.trouble = True, ""
        _log.info("upstream %s (%s) serves %s", one.base, one.kind, self.model)

    def _note(self, one: Upstream, trouble: str) -> None:
        """Once for as long as it lasts."""
        if trouble != one.trouble:
            _log.warning("upstream %s: %s", one.base, trouble)
        one.trouble = trouble

    def candidates(self) -> Sequence[Upstream]:
        """Those to ask, one after the other: the least busy first, in turn where they are alike.

        Raises `Overloaded` and `UpstreamUnavailable`.
        """
        healthy = [one for one in self._all if one.healthy]
        if not healthy:
            raise UpstreamUnavailable("None of the servers that run the model answers. Try again shortly.")
        free = [one for one in healthy if one.running < self.config.max_requests]
        if not free:
            raise Overloaded(
                f"All {self.config.max_requests} places on every server are taken. Try again shortly."
            )
        self._turn += 1
        turned = free[self._turn % len(free) :] + free[: self._turn % len(free)]
        return sorted(turned, key=lambda one: one.running)

    def set_aside(self, one: Upstream, reason: str) -> None:
        """It is asked nothing more until a probe finds it back."""
        _log.warning("upstream %s failed: %s", one.base, reason)
        one.healthy = False

    @contextmanager
    def using(self, one: Upstream) -> Iterator[None]:
        one.running += 1
        try:
            yield
        finally:
            one.running -= 1

    @property
    def num_running(self) -> int:
        return sum(one.running for one in self._all)
