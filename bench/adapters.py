"""What adapters cost: eight requests in one batch on the base, on one adapter, and on four.

    OMP_NUM_THREADS=1 python bench/adapters.py --output bench/results/adapters.jsonl

The adapters are LoRAs of rank 16 on all seven projections that add nothing, so that every arm writes the same
text in the same passes, and what differs is their cost. The arms take turns, so that whatever else the
machine does slows all; figures are medians, with the least and the most.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from vermilion.config import EngineConfig, build
from vermilion.engine.llm import LLM
from vermilion.evaluation.environment import command, environment
from vermilion.models import catalog
from vermilion.training import finetune
from vermilion.training.export import write_adapter
from vermilion.training.recipe import Recipe
from vermilion.types import Finish, Sampling

NUM_REQUESTS, NUM_ADAPTERS, RANK = 8, 4, 16
ARMS = {"base": [""], "one adapter": ["a0"], "four adapters": [f"a{i}" for i in range(NUM_ADAPTERS)]}
TOPICS = ("rain", "bread", "a lighthouse", "chess", "the moon", "a bicycle", "honey", "snow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decoding", default="lossless")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="append the row to this file")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as folder:
        adapter = neutral(Path(folder))
        names = {name: adapter for name in ARMS["four adapters"]}
        llm = LLM(config=EngineConfig(threads=torch.get_num_threads()), adapters=names)
    taken: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for repeat in range(given.repeats + 1):
        for arm, adapters in ARMS.items():
            figures = batch(llm, adapters, given.decoding, given.tokens)
            if repeat:  # the first round allocates
                taken[arm].append(figures)
    row = {
        "benchmark": "adapters",
        "command": command(),
        **environment(llm),
        "load_average": round(os.getloadavg()[0], 1),
        "requests": NUM_REQUESTS,
        "rank": RANK,
        "repeats": given.repeats,
        "arms": {
            arm: {name: spread([one[name] for one in rows]) for name in rows[0]}
            for arm, rows in taken.items()
        },
    }
    print(json.dumps(row))
    if given.output:
        with given.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def neutral(folder: Path) -> Path:
    """A LoRA that adds nothing, on disk."""
    examples = folder / "examples.jsonl"
    examples.write_text('{"prompt": "a", "response": "b"}\n' * 2)
    data = {"sources": [{"path": str(examples)}], "held_out": 0}
    recipe = finetune.with_defaults({"output": str(folder), "rank": RANK, "steps": 1, "data": data})
    run = finetune.prepare(build(Recipe, recipe), catalog.find(catalog.DEFAULT_MODEL))
    write_adapter(folder / "adapter", run)
    return folder / "adapter"


def batch(llm: LLM, adapters: list[str], decoding: str, num_tokens: int) -> dict[str, float]:
    """Eight answers at once, the adapters in turn."""
    streams = []
    for i in range(NUM_REQUESTS):
        name = adapters[i % len(adapters)]
        prompt = llm.chat_prompt([{"role": "user", "content": f"Write about {TOPICS[i]}."}])
        one = llm.using(name) if name else llm
        streams.append(one.stream(prompt, Sampling(max_tokens=num_tokens), decoding))
    passes, tokens = 0, 0
    step = llm.engine.step

    def counted():  # type: ignore[no-untyped-def]
        nonlocal passes
        passes += 1
        return step()

    llm.engine.step = counted  # type: ignore[method-assign]
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    try:
        for stream in streams:
            tokens += sum(event.usage.completion_tokens for event in stream if isinstance(event, Finish))
    finally:
        llm.engine.step = step  # type: ignore[method-assign]
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return {
        "tokens": tokens,
        "passes": passes,
        "tokens_per_s": tokens / wall_s,
        "ms_per_pass": 1e3 * wall_s / passes,
        "tokens_per_cpu_s": tokens / cpu_s,
        "cpu_ms_per_pass": 1e3 * cpu_s / passes,
    }


def spread(values: list[float]) -> list[float]:
    """Median, least, most."""
    return [round(value, 2) for value in (median(values), min(values), max(values))]


if __name__ == "__main__":
    main()
