"""Work that would hold up the event loop: on a thread of its own, one piece at a time."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

from vermilion.serving.http.auth import VISIT

Result = TypeVar("Result")

_EXECUTOR = ThreadPoolExecutor(max_workers=1, thread_name_prefix="heavy")
"""One thread: large requests wait for each other rather than all others for them, and take the core and the
memory of one. The loop's own threads are for what waits, such as the accounts and the disk."""
_TURNS: WeakValueDictionary[tuple[asyncio.AbstractEventLoop, str], asyncio.Lock] = WeakValueDictionary()


async def offload(work: Callable[[], Result]) -> Result:
    """What `work` returns or raises, while the loop goes on. Organisations take turns."""
    visit, loop, context = VISIT.get(), asyncio.get_running_loop(), contextvars.copy_context()
    turn = _TURNS.setdefault((loop, visit.key.organisation_id if visit else ""), asyncio.Lock())
    async with turn:
        return await loop.run_in_executor(_EXECUTOR, lambda: context.run(work))
