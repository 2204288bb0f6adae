"""Engines behind Ray Serve against one service alone: throughput, time to first text, prefixes found again.

    scripts/test-ray --collect-only -q   # makes .clients/ray, once
    PYTHONPATH=src .clients/ray/bin/python bench/ray_scale.py --output bench/results/ray_scale.jsonl

Every engine has one thread. The arms run one after the other, each with its own cluster: `alone` is
`vermilion serve` without Ray. A round sends so many chats at once until all are answered; rows have medians,
the least and the most of the rounds. Then conversations of a long first message go on turn by turn: `cached`
is the share of their prompts' tokens that was found in a cache, which for more engines than one is the work
of the router.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

ARMS = {"alone": 0, "ray 1": 1, "ray 2": 2}
CHAT = "/v1/chat/completions"
RUN = "import sys; from vermilion.cli import main; sys.exit(main())"
NUM_CONVERSATIONS, NUM_TURNS = 8, 4


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def spread(values: list[float], digits: int) -> list[float]:
    """Median, least and most."""
    return [round(value, digits) for value in (statistics.median(values), min(values), max(values))]


@asynccontextmanager
async def service(num_replicas: int) -> AsyncIterator[httpx.AsyncClient]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", RUN, "serve", "--port", str(port), "--threads", "1"]
    if num_replicas:
        command += ["--ray", "--set", f"ray.min_replicas={num_replicas}"]
        command += ["--set", f"ray.max_replicas={num_replicas}"]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--set", f"serve.data_folder={folder}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)
        limits = httpx.Limits(max_connections=None)
        try:
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", timeout=300, limits=limits
            ) as client:
                await ready(client, process)
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


async def ready(client: httpx.AsyncClient, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            if (await client.get("/ready")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.5)
    raise SystemExit("the service did not start")


async def answer(
    client: httpx.AsyncClient, messages: list[dict[str, str]], max_tokens: int
) -> tuple[float, str, Any]:
    """(milliseconds to the first text, the text, usage)."""
    started_s, first_s, text, usage = time.perf_counter(), 0.0, "", None
    body = {"messages": messages, "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
    body["stream_options"] = {"include_usage": True}
    async with client.stream("POST", CHAT, json=body) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            for choice in chunk["choices"]:
                piece = choice["delta"].get("content") or ""
                first_s = first_s or (time.perf_counter() if piece else 0.0)
                text += piece
            usage = chunk.get("usage") or usage
    return 1000 * (first_s - started_s), text, usage


def question(chance: random.Random) -> list[dict[str, str]]:
    words = [chance.choice(("river", "stone", "lamp", "winter", "engine", "paper")) for _ in range(24)]
    return [{"role": "user", "content": f"Tell a story with these words: {' '.join(words)}"}]


async def one_round(client: httpx.AsyncClient, at_once: int, seed: int) -> tuple[float, float]:
    """(tokens a second, median milliseconds to the first text)."""
    chance, started_s = random.Random(seed), time.perf_counter()
    answers = await asyncio.gather(*(answer(client, question(chance), 64) for _ in range(at_once)))
    tokens = sum(usage["completion_tokens"] for _, _, usage in answers)
    return tokens / (time.perf_counter() - started_s), statistics.median(first for first, _, _ in answers)


async def cached_share(client: httpx.AsyncClient) -> float:
    """Of the prompts' tokens of conversations, which take turns, behind their first questions."""
    prompt = cached = 0

    async def conversation(seed: int) -> None:
        nonlocal prompt, cached
        chance = random.Random(f"conversation {seed}")
        messages = [{"role": "user", "content": question(chance)[0]["content"] * 6}]
        for turn in range(NUM_TURNS):
            _, text, usage = await answer(client, messages, 16)
            if turn:
                prompt += usage["prompt_tokens"]
                cached += usage["cached_input_tokens"]
            messages += [{"role": "assistant", "content": text}, *question(chance)]

    # Two at once, so that the idlest engine is not always the same.
    for seed in range(0, NUM_CONVERSATIONS, 2):
        await asyncio.gather(conversation(seed), conversation(seed + 1))
    return cached / prompt


async def measure(arm: str, concurrency: list[int], repeats: int) -> list[dict[str, Any]]:
    rows = []
    async with service(ARMS[arm]) as client:
        await one_round(client, 4, 0)
        share = await cached_share(client)
        for at_once in concurrency:
            rounds = [await one_round(client, at_once, 100 * at_once + number) for number in range(repeats)]
            rows.append(
                {
                    "benchmark": "ray_scale",
                    "command": "bench/ray_scale.py",
                    "commit": commit(),
                    "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread an engine",
                    "load": round(os.getloadavg()[0], 2),
                    "arm": arm,
                    "at_once": at_once,
                    "rounds": repeats,
                    "tokens_per_s": spread([rate for rate, _ in rounds], 1),
                    "first_text_ms": spread([first for _, first in rounds], 1),
                    "cached": round(share, 3),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concurrency", default="1,8,32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--output", type=Path, help="append the rows to this file")
    given = parser.parse_args()
    for arm in given.arms.split(","):
        concurrency = [int(number) for number in given.concurrency.split(",")]
        for row in asyncio.run(measure(arm, concurrency, given.repeats)):
            line = json.dumps(row)
            print(line, flush=True)
            if given.output:
                with given.output.open("a", encoding="utf-8") as output:
                    output.write(line + "\n")


if __name__ == "__main__":
    main()
