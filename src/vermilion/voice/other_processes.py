"""The other processes that answer calls at the same address.

They share one listening socket, so a connection comes to any of them. A WebSocket stays with the one it came
to. A WebRTC call goes on by requests of its own, which may come to another: that one hands them on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

OWN = {"own": "true"}
"""Asks a process about itself alone."""
_COUNTED = ("calls", "calls_finished", "turns", "interruptions", "errors")
_TIMEOUT_S = 3.0
_NOT_FOUND = 404


class OtherProcesses:
    """Reached at `urls`, each at an address of its own on this machine."""

    def __init__(self, urls: Sequence[str] = ()) -> None:
        self._urls = urls

    async def hand_on(self, method: str, path: str, body: Any) -> Any | None:
        """The answer of the one that has the call that `body` is about; None where no other has it."""
        for reply in await self._asked(method, path, body):
            if reply.status_code != _NOT_FOUND:
                return reply.raise_for_status().json()
        return None

    async def everywhere(self, path: str) -> list[Any]:
        """What all of them answer; one that is starting is left out."""
        return [reply.json() for reply in await self._asked("GET", path) if reply.is_success]

    async def _asked(self, method: str, path: str, body: Any = None) -> list[httpx.Response]:
        replies = []
        async with httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT_S) as client:
            for url in self._urls:
                try:
                    replies.append(await client.request(method, f"{url}{path}", params=OWN, json=body))
                except httpx.TransportError:
                    continue
        return replies


def together(statuses: list[dict[str, Any]]) -> dict[str, Any]:
    """The status of several processes as one."""
    sums = {name: sum(status[name] for status in statuses) for name in _COUNTED}
    return {**statuses[0], **sums, "processes": len(statuses)}
