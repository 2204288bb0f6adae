"""While others send what once held the service up for seconds, nobody else fails, stalls or is overheard."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap

import httpx
import pytest

from serving.bystander import SECRET, watch
from serving.running import until_ready

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
SECONDS = 25.0
WORDS = tuple(f"word{number} " for number in range(60))
STALL_MS = 1000.0
"""Each of the attacks held the event loop for 0.5 to 23 s before they were bounded. The promise is 100 ms,
which scripts/soak measures: a busy machine must not fail the build."""
SCRIPT = f"""
    from contextlib import asynccontextmanager
    from dataclasses import replace
    from serving.fake import MODEL, FakeBackend, served
    from vermilion.serving.serve_config import ServeConfig
    from vermilion.serving.http.server import run

    @asynccontextmanager
    async def load():
        yield served(FakeBackend(words={WORDS!r}, step_s=0.01, model=replace(MODEL, context_length=8192)))

    run(ServeConfig(port=0, drain_timeout_s=1), load, lambda url: print(url, flush=True))
"""


async def test_a_bystander_neither_fails_nor_stalls_nor_is_overheard() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        url = (await asyncio.to_thread(process.stdout.readline)).strip()
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            await until_ready(client)
        body = {"messages": [{"role": "user", "content": SECRET}], "stream": True}
        seen = await watch(url, SECONDS, body, attackers=4)
    finally:
        process.kill()
        process.communicate()
    print(seen.figures)
    failed = {key for key in seen.statuses if not key.rsplit(" ", 1)[1].startswith(("2", "4"))}
    assert not failed and not seen.leaks
    assert seen.texts == {"".join(WORDS)}
    assert max(seen.health_ms) < STALL_MS and max(seen.gaps_ms) < STALL_MS, seen.figures
    assert len({key.rsplit(" ", 1)[0] for key in seen.statuses}) > 30
