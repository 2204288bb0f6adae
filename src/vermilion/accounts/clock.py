"""Time as the tables keep it: whole microseconds since 1970, UTC."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
DAY_US = 24 * 60 * MINUTE_US
_END_US = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp()) * SECOND_US
"""The last day that can be written."""


def now_us() -> int:
    return time.time_ns() // 1000


def day_of(at_us: int) -> str:
    """`2026-01-31`."""
    return _day(at_us // DAY_US)


@lru_cache(maxsize=8)
def _day(number: int) -> str:
    return datetime.fromtimestamp(number * DAY_US // SECOND_US, UTC).strftime("%Y-%m-%d")


def stamp(at_us: int | None) -> str | None:
    """RFC 3339, to the second; None stays None."""
    if at_us is None:
        return None
    return datetime.fromtimestamp(at_us // SECOND_US, UTC).isoformat().replace("+00:00", "Z")


def parsed_us(text: str) -> int:
    """Of an ISO 8601 date or time from 1970 on, UTC unless it says otherwise. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    at_us = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * SECOND_US)
    if not 0 <= at_us <= _END_US:
        raise ValueError(text)
    return at_us
