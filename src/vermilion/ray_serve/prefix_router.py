"""Ray Serve's router, by what replicas have in their caches."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from vermilion.ray_serve.prefix_index import PrefixIndex, links_of
from vermilion.types import Request


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Ranks all replicas; Serve takes the first of them that has room."""

    def initialize_state(self, imbalance: int = 8) -> None:
        """As `RayConfig.imbalance`. Called by Serve."""
        self._index = PrefixIndex(imbalance)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Each a rank of its own, so that a fuller one may come before an emptier one."""
        named = {one.replica_id.unique_id: one for one in candidate_replicas}
        loads = {name: self.replica_queue_len_cache.get(one.replica_id) or 0 for name, one in named.items()}
        request = _request(pending_request)
        links = links_of(request) if request is not None else ()
        return [[named[name]] for name in self._index.rank(links, loads)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Called by Serve."""
        request = _request(pending_request)
        if request is not None:
            self._index.add(links_of(request), replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called by Serve when there are others."""
        super().update_replicas(replicas)
        self._index.keep(one.replica_id.unique_id for one in replicas)


def _request(pending: PendingRequest | None) -> Request | None:
    given = pending.args[0] if pending is not None and pending.args else None
    return given if isinstance(given, Request) else None
