"""A long attack on the real model beside a bystander, with figures: see docs/OPERATIONS.md.

    PYTHONPATH=src:tests python -m serving.soak [--minutes 30] [--attackers 4] [--output FILE]

Adds a row of JSON to the file; ends with 1 where the service broke a promise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import httpx

from serving.bystander import SECRET, Watched, watch

_UNDISTURBED_S = 60.0
"""Before the attack, and as long after it."""
_MOST_HEALTH_MS = 100.0
_MOST_GAP_RATIO = 2.0
_COMMAND = "from vermilion.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
_ROOT = Path(__file__).parents[2]
_RESULTS = _ROOT / "bench/results/soak.jsonl"


def memory_mb(pid: int, what: str) -> int:
    """Of the process in MB: `VmRSS` what it holds, `VmHWM` the most it has held."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) // 1024


async def ready(url: str, process: subprocess.Popen[bytes]) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        while process.poll() is None:
            try:
                if (await client.get("/ready")).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.5)
    raise SystemExit(f"the service ended with status {process.returncode} before it was ready")


async def soak(url: str, minutes: float, attackers: int) -> tuple[Watched, Watched]:
    """What was seen undisturbed, before and after, and under attack."""
    question = f"{SECRET}. Write a long story about a lighthouse."
    messages = [{"role": "user", "content": question}]
    body = {"messages": messages, "stream": True, "max_tokens": 256, "preset": "ar", "ignore_eos": True}
    await watch(url, 5.0, body)
    calm = await watch(url, _UNDISTURBED_S, body)
    attacked = await watch(url, minutes * 60, body, attackers)
    await watch(url, 5.0, body)
    after = await watch(url, _UNDISTURBED_S, body)
    calm.health_ms += after.health_ms
    calm.gaps_ms += after.gaps_ms
    calm.texts |= after.texts
    return calm, attacked


def broken(calm: Watched, attacked: Watched, failed: list[str]) -> list[str]:
    """The promises that were not kept, in words."""
    health_ms, gap_ms = max(attacked.health_ms), max(attacked.gaps_ms)
    most_ms = _MOST_GAP_RATIO * max(calm.gaps_ms)
    said = {
        f"requests failed: {', '.join(failed)}": failed,
        f"overheard by {', '.join(attacked.leaks)}": attacked.leaks,
        "the bystander's text changed": len(calm.texts | attacked.texts) > 1,
        f"/health took {health_ms:.0f} ms, more than {_MOST_HEALTH_MS:.0f}": health_ms > _MOST_HEALTH_MS,
        f"the longest gap was {gap_ms:.0f} ms, more than {most_ms:.0f}": gap_ms > most_ms,
    }
    return [text for text, true in said.items() if true]


def where() -> dict[str, object]:
    """What a row of results says of the run's circumstances."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=_ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    hardware = f"{os.cpu_count()} CPU cores ({platform.machine()}), load average before {load}"
    command = " ".join(["scripts/soak", *sys.argv[1:]])
    return {"date": date.today().isoformat(), "commit": commit, "command": command, "hardware": hardware}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--attackers", type=int, default=4)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--output", type=Path, default=_RESULTS)
    given = parser.parse_args()
    row: dict[str, object] = {**where(), "minutes": given.minutes, "attackers": given.attackers}
    command = [sys.executable, "-c", _COMMAND, "serve", "--port", str(given.port)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    url = f"http://127.0.0.1:{given.port}"
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        asyncio.run(ready(url, process))
        row["loaded_memory_mb"] = memory_mb(process.pid, "VmRSS")
        calm, attacked = asyncio.run(soak(url, given.minutes, given.attackers))
        if process.poll() is not None:
            raise SystemExit(f"the service ended with status {process.returncode} under attack")
        row["peak_memory_mb"] = memory_mb(process.pid, "VmHWM")
    finally:
        process.terminate()
        process.wait()
    failed = sorted(key for key in attacked.statuses if not key.rsplit(" ", 1)[1].startswith(("2", "4")))
    promises = broken(calm, attacked, failed)
    row |= {
        "undisturbed": calm.figures, "attacked": attacked.figures,
        "gap_ratio": round(max(attacked.gaps_ms) / max(calm.gaps_ms), 2),
        "failed": failed, "leaks": attacked.leaks, "texts": len(calm.texts | attacked.texts),
        "broken": promises,
    }  # fmt: skip
    print(json.dumps(row, indent=1))
    with given.output.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print("\n".join(promises) or "all promises were kept", file=sys.stderr)
    return 1 if promises else 0


if __name__ == "__main__":
    sys.exit(main())
