"""Lists in pages, as OpenAI's clients turn them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Request as HttpRequest

from vermilion.errors import BadParameter

_ORDERS = ("asc", "desc")


def page(http: HttpRequest, rows: Sequence[dict[str, Any]], most: int, usual: int) -> dict[str, Any]:
    """The part of `rows`, oldest first, that the query asks for: `limit`, `after` (an id), `order`.

    Newest first unless `order` says otherwise. Raises BadParameter.
    """
    order = http.query_params.get("order", "desc")
    if order not in _ORDERS:
        raise BadParameter("order", order, " or ".join(_ORDERS))
    given = http.query_params.get("limit", str(usual))
    if not (given.isascii() and given.isdecimal() and 1 <= int(given[:9]) <= most):
        raise BadParameter("limit", given, f"1 to {most}")
    ordered = list(rows if order == "asc" else reversed(rows))
    after = http.query_params.get("after")
    if after:
        at = next((number for number, row in enumerate(ordered) if row["id"] == after), None)
        if at is None:
            raise BadParameter("after", after, "the id of a row of this list")
        ordered = ordered[at + 1 :]
    shown = ordered[: int(given)]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(shown) < len(ordered),
    }
