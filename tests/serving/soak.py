"""A long attack on the real model beside a bystander, with figures: see docs/OPERATIONS.md.

    PYTHONPATH=src:tests python -m serving.soak [--minutes 30] [--attackers 4] [--output FILE]

Prints one line of JSON; ends with 1 where the service broke a promise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx

from serving.bystander import SECRET, Watched, watch

_UNDISTURBED_S = 60.0
_MOST_HEALTH_MS = 100.0
_MOST_GAP_RATIO = 2.0
_COMMAND = "from vermilion.cli import main; import sys; sys.exit(main(sys.argv[1:]))"


def peak_mb(pid: int) -> int:
    """Most memory that the process has held, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


async def ready(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        while True:
            try:
                if (await client.get("/ready")).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.5)


async def soak(url: str, minutes: float, attackers: int) -> tuple[Watched, Watched]:
    """Undisturbed, then under attack."""
    question = f"{SECRET}. Write a long story about a lighthouse."
    messages = [{"role": "user", "content": question}]
    body = {"messages": messages, "stream": True, "max_tokens": 256, "preset": "ar", "ignore_eos": True}
    await ready(url)
    await watch(url, 5.0, body)
    calm = await watch(url, _UNDISTURBED_S, body)
    return calm, await watch(url, minutes * 60, body, attackers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--attackers", type=int, default=4)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    command = [sys.executable, "-c", _COMMAND, "serve", "--port", str(given.port)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    try:
        calm, attacked = asyncio.run(soak(f"http://127.0.0.1:{given.port}", given.minutes, given.attackers))
        alive, memory_mb = process.poll() is None, peak_mb(process.pid)
    finally:
        process.terminate()
        process.wait()
    failed = sorted(key for key in attacked.statuses if not key.rsplit(" ", 1)[1].startswith(("2", "4")))
    row = {
        "minutes": given.minutes, "attackers": given.attackers, "undisturbed": calm.figures,
        "attacked": attacked.figures, "peak_memory_mb": memory_mb, "failed": failed,
        "leaks": attacked.leaks, "alive": alive, "texts": len(calm.texts | attacked.texts),
    }  # fmt: skip
    print(json.dumps(row))
    if given.output:
        with given.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    kept = (
        alive and not failed and not attacked.leaks and row["texts"] == 1
        and max(attacked.health_ms) <= _MOST_HEALTH_MS
        and max(attacked.gaps_ms) <= _MOST_GAP_RATIO * max(calm.gaps_ms)
    )  # fmt: skip
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
