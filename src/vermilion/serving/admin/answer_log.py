"""The figures of the last answers, for what users will say of them. Never their words."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import asdict
from typing import Any

from vermilion.errors import VermilionError
from vermilion.types import Finish, Request, Usage

_KEPT = 10_000


class UnknownAnswer(VermilionError):
    """No answer of that id is remembered."""

    status = 404
    kind = "invalid_request_error"
    code = "request_not_found"
    param = "request_id"

    def __init__(self, id: str) -> None:
        super().__init__(
            f"No answer {id!r:.100} is remembered; the last {_KEPT} since the service started are."
        )


class AnswerLog:
    """The figures of the last answers, by id."""

    def __init__(self) -> None:
        self._rows: OrderedDict[str, tuple[dict[str, Any], Usage]] = OrderedDict()

    def add(self, request: Request, model: str, finish: Finish) -> None:
        row = {
            "model": request.adapter or model,
            "answered_at": int(time.time()),
            "finish_reason": finish.reason,
            "decoder": request.decoding.decoder,
        }
        self._rows[request.id] = row, finish.usage
        while len(self._rows) > _KEPT:
            self._rows.popitem(last=False)

    def find(self, id: str) -> dict[str, Any]:
        """Of the first choice, where there were several. Raises `UnknownAnswer`."""
        found = self._rows.get(f"{id}-0") or self._rows.get(id)
        if found is None:
            raise UnknownAnswer(id)
        row, usage = found
        return {**row, "usage": asdict(usage)}
