"""What somebody who asks nothing unusual sees of a service while others attack it.

The attackers are a process of their own (`python -m serving.bystander URL SECONDS AT_ONCE`), so that making
8 MB bodies does not delay the clock that measures.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import cycle

import httpx

from serving.attacks import ATTACKS, CHAT

SECRET = "the password is heliotrope"
_HEALTH_PAUSE_S = 0.02


@dataclass
class Watched:
    """Of one stretch of time."""

    health_ms: list[float] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)
    """Between two pieces of the bystander's streams."""
    texts: set[str] = field(default_factory=set)
    statuses: Counter[str] = field(default_factory=Counter)
    """Of the attacks: `name status`."""
    leaks: list[str] = field(default_factory=list)
    """Attacks in whose reply the bystander's secret stood."""

    @property
    def figures(self) -> dict[str, object]:
        def at(values: list[float], share: float) -> float:
            return round(sorted(values)[min(len(values) - 1, int(share * len(values)))], 1) if values else 0.0

        return {
            "health_worst_ms": at(self.health_ms, 1.0),
            "health_p99_ms": at(self.health_ms, 0.99),
            "gap_worst_ms": at(self.gaps_ms, 1.0),
            "gap_p99_ms": at(self.gaps_ms, 0.99),
            "gap_median_ms": at(self.gaps_ms, 0.5),
            "num_health": len(self.health_ms),
            "num_gaps": len(self.gaps_ms),
            "num_attacks": sum(self.statuses.values()),
            "statuses": dict(
                sorted(Counter(key.rsplit(" ", 1)[1] for key in self.statuses.elements()).items())
            ),
        }


async def watch(url: str, seconds: float, body: dict[str, object], attackers: int = 0) -> Watched:
    """Polls /health and streams answers to `body` for so long, with so many attacks running at once."""
    seen = Watched()
    process = None
    if attackers:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "serving.bystander", url, str(seconds), str(attackers),
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONUNBUFFERED": "1"},
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        await process.stdout.readline()  # the bodies are made
    end_s = time.perf_counter() + seconds
    async with httpx.AsyncClient(base_url=url, timeout=120) as client, asyncio.TaskGroup() as group:
        group.create_task(_poll(client, end_s, seen))
        group.create_task(_read(client, end_s, body, seen))
    if process is not None:
        output, _ = await process.communicate()
        for line in output.splitlines():
            row = json.loads(line)
            seen.statuses[f"{row['name']} {row['status']}"] += 1
            if row["leak"]:
                seen.leaks.append(row["name"])
    return seen


async def _poll(client: httpx.AsyncClient, end_s: float, seen: Watched) -> None:
    while time.perf_counter() < end_s:
        begun_s = time.perf_counter()
        reply = await client.get("/health")
        seen.health_ms.append((time.perf_counter() - begun_s) * 1000)
        assert reply.status_code == 200
        await asyncio.sleep(_HEALTH_PAUSE_S)


async def _read(client: httpx.AsyncClient, end_s: float, body: dict[str, object], seen: Watched) -> None:
    while time.perf_counter() < end_s:
        texts, last_s = [], None
        async with client.stream("POST", CHAT, json=body) as reply:
            assert reply.status_code == 200, await reply.aread()
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    now_s = time.perf_counter()
                    if last_s is not None:
                        seen.gaps_ms.append((now_s - last_s) * 1000)
                    last_s = now_s
                    for choice in json.loads(line[6:])["choices"]:
                        texts.append(choice["delta"].get("content") or "")
        seen.texts.add("".join(texts))


def attack(url: str, seconds: float, at_once: int) -> None:
    """Sends every attack in turn; prints a line of JSON for each."""
    bodies = {name: (path, make()) for name, (path, make) in ATTACKS.items()}
    print("ready", flush=True)
    names, lock, end_s = cycle(bodies), threading.Lock(), time.perf_counter() + seconds

    def work() -> None:
        with httpx.Client(base_url=url, timeout=120) as client:
            while time.perf_counter() < end_s:
                with lock:
                    name = next(names)
                path, body = bodies[name]
                try:
                    reply = client.post(path, content=body, headers={"content-type": "application/json"})
                    status, leak = str(reply.status_code), SECRET in reply.text
                except httpx.HTTPError as error:
                    status, leak = type(error).__name__, False
                with lock:
                    print(json.dumps({"name": name, "status": status, "leak": leak}), flush=True)

    threads = [threading.Thread(target=work) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    attack(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
