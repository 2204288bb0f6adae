"""What an engine replica sends back of one request, in lists of what has come together."""

from __future__ import annotations

from dataclasses import dataclass

from vermilion.errors import VermilionError
from vermilion.types import EngineStats, Event, Usage


@dataclass(frozen=True, slots=True)
class Assigned:
    """The first item: which replica has taken the request."""

    replica: str


@dataclass(frozen=True, slots=True)
class ReplicaRefusal:
    """An error of ours; our classes take other arguments than a pickled exception is made from again."""

    message: str
    status: int
    kind: str
    code: str | None
    param: str | None
    retry_after_s: int | None

    @classmethod
    def of(cls, error: VermilionError) -> ReplicaRefusal:
        return cls(str(error), error.status, error.kind, error.code, error.param, error.retry_after_s)


Item = Assigned | Event | Usage | EngineStats | ReplicaRefusal
"""A `Usage` is what the prompt has cost so far; `EngineStats`, of the replica, precede the `Finish`."""


class RefusedByReplica(VermilionError):
    """What the engine said of a request, as it would have said it here."""

    def __init__(self, refusal: ReplicaRefusal) -> None:
        super().__init__(refusal.message)
        self.status, self.kind = refusal.status, refusal.kind
        self.code, self.param = refusal.code, refusal.param
        self.retry_after_s = refusal.retry_after_s


class ReplicaLost(VermilionError):
    """The process that worked on a request is gone; another may answer it."""
