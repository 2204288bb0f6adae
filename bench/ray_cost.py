"""Processor time that a request and a chunk cost each process of a Ray cluster, on fake engines.

    PYTHONPATH=src:tests .clients/ray/bin/python bench/ray_cost.py --output bench/results/ray_cost.jsonl

`proxy` is Ray's, which takes connections; `ingress` the service itself, with accounts in SQLite; `engine` the
two replicas together, without a model. Streams of one word and of twenty, one every 10 ms, eight at a time;
figures are milliseconds, medians of the rounds. `first_text_ms` is what a client waits for the first word.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from ray_scale import commit

from ray_serve.cluster import NUM_WORDS, Cluster, started
from ray_serve.test_cluster import CHAT, body, prepared

AT_ONCE, NUM_REQUESTS = 8, 64


def processes(cluster: Cluster) -> dict[str, list[psutil.Process]]:
    proxies = [
        each
        for each in psutil.Process(cluster.process.pid).children(recursive=True)
        if "ProxyActor" in " ".join(each.cmdline())
    ]
    return {"proxy": proxies, "ingress": cluster.ingresses(), "engine": cluster.engines()}


def spent_s(kinds: dict[str, list[psutil.Process]]) -> dict[str, float]:
    return {kind: sum(sum(one.cpu_times()[:2]) for one in processes) for kind, processes in kinds.items()}


async def first_text_ms(client: httpx.AsyncClient, text: str, max_tokens: int) -> float:
    """Of one stream, which is read to its end."""
    started_s, first_s = time.perf_counter(), 0.0
    asked = body(text, stream=True, max_tokens=max_tokens)
    async with client.stream("POST", CHAT, json=asked) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if not first_s and re.search(r'"content": ?"[^"]', line):
                first_s = time.perf_counter()
    return 1000 * (first_s - started_s)


async def measure(cluster: Cluster, key: str, repeats: int) -> dict[int, dict[str, float]]:
    """By the words of an answer: what each kind of process spends on a request."""
    costs: dict[int, list[dict[str, float]]] = {1: [], NUM_WORDS: []}
    kinds = processes(cluster)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=cluster.url, headers=headers, timeout=60) as client:
        for number in range(2 * (repeats + 1)):
            words = (1, NUM_WORDS)[number % 2]
            before, firsts = spent_s(kinds), []
            for _ in range(NUM_REQUESTS // AT_ONCE):
                asked = [first_text_ms(client, f"Hi {number} {i}", words) for i in range(AT_ONCE)]
                firsts += await asyncio.gather(*asked)
            after = spent_s(kinds)
            cost = {kind: 1000 * (after[kind] - before[kind]) / NUM_REQUESTS for kind in kinds}
            if number > 1:
                costs[words].append({**cost, "first_text": statistics.median(firsts)})
    return {
        words: {kind: round(statistics.median(cost[kind] for cost in rounds), 3) for kind in rounds[0]}
        for words, rounds in costs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, help="append the rows to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        key = prepared(Path(folder))
        with started(Path(folder)) as cluster:
            found = asyncio.run(measure(cluster, key, given.repeats))
    for words, cost in found.items():
        row = {"benchmark": "ray_cost", "command": "bench/ray_cost.py", "commit": commit()}
        row |= {"load": round(os.getloadavg()[0], 2), "words": words, "rounds": given.repeats}
        row |= {f"{kind}_ms": value for kind, value in cost.items()}
        line = json.dumps(row)
        print(line)
        if given.output:
            with given.output.open("a", encoding="utf-8") as output:
                output.write(line + "\n")


if __name__ == "__main__":
    main()
