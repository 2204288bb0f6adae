"""Ten times more clients than the engine takes: those it takes keep their speed, others are told to wait."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections import Counter

import httpx
import psutil
import pytest

from serving.fake import FakeBackend
from serving.running import QUESTION, running

pytestmark = pytest.mark.anyio
PLACES = 8
ROUND_S = 2.5
GROWTH_BYTES = 16 * 2**20


async def crowd(client: httpx.AsyncClient, size: int) -> tuple[list[float], Counter[int]]:
    """`size` clients that ask again and again; the durations of answers, and how often each status came."""
    durations: list[float] = []
    statuses: Counter[int] = Counter()
    end_s = time.perf_counter() + ROUND_S

    async def one(number: int) -> None:
        while time.perf_counter() < end_s:
            started_s = time.perf_counter()
            reply = await client.post(
                "/v1/chat/completions", json={**QUESTION, "stream": bool(number % 2), "max_tokens": 20}
            )
            statuses[reply.status_code] += 1
            if reply.status_code == 200:
                durations.append(time.perf_counter() - started_s)
                assert "word" in reply.text
            else:
                assert reply.json()["error"]["code"] == "engine_overloaded"
                await asyncio.sleep(int(reply.headers["retry-after"]))

    await asyncio.gather(*(one(number) for number in range(size)))
    return durations, statuses


async def test_accepted_requests_keep_their_speed_and_the_rest_are_told_to_wait() -> None:
    backend = FakeBackend(words=("word ",) * 20, step_s=0.02, capacity=PLACES)
    async with running(backend) as server:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=20, limits=limits) as client:
            alone, quiet = await crowd(client, PLACES)
            assert set(quiet) == {200}
            sizes = []
            for _ in range(3):
                backend.requests.clear()
                crowded, statuses = await crowd(client, 10 * PLACES)
                assert set(statuses) == {200, 429}
                gc.collect()
                sizes.append(psutil.Process().memory_info().rss)
            # Again, next to the crowd: what else runs on this computer differs from minute to minute.
            after, _ = await crowd(client, PLACES)
        alone = max(alone, after, key=statistics.median)
        assert statistics.median(crowded) < 1.5 * statistics.median(alone) + 0.1
        # As many answers as without the crowd, so no place stood empty for it.
        assert statuses[200] > 0.6 * quiet[200]
        assert sizes[-1] - sizes[0] < GROWTH_BYTES
        assert backend.running == 0
        print(
            f"\nmedian {statistics.median(alone):.3f} s alone, {statistics.median(crowded):.3f} s among ten "
            f"times too many ({statuses[200]} answered, {statuses[429]} refused); memory {sizes}"
        )
