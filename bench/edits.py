"""Passes and seconds to write a file again, with and without its text as a draft.

The question asks for an exact copy; what the model then writes is its own, the same both times.
Usage: python bench/edits.py [--output bench/results/edits.jsonl]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

from vermilion import LLM, Sampling
from vermilion.decoding.presets import PRESETS
from vermilion.types import Finish, Request

REPEATS = 5
LINES = [f"def step_{n}(value):\n    return value + {n}\n" for n in range(12)]
FILE = "\n".join(LINES)


def measure(llm: LLM, request: Request) -> tuple[float, Finish, list[int]]:
    started = time.perf_counter()
    program = llm.engine.submit(request)
    events = []
    while llm.engine.has_work:
        events += [event for _, event in llm.engine.step()]
    finish = events[-1]
    assert isinstance(finish, Finish)
    return time.perf_counter() - started, finish, program.tokens[len(request.prompt) :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    output = parser.parse_args().output
    llm = LLM()
    question = f"Write this file again, exactly as it is:\n```python\n{FILE}\n```"
    prompt = llm.chat_prompt([{"role": "user", "content": question}]) + llm.tokenizer.encode("```python\n")
    existing = tuple(llm.tokenizer.encode(FILE))
    decoding = replace(PRESETS["lossless"], draft_nodes=64)
    plain = Request("x", tuple(prompt), Sampling(max_tokens=len(existing)), PRESETS["lossless"])
    kinds = {"regenerate": plain, "draft from the file": replace(plain, existing=existing, decoding=decoding)}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    ends: dict[str, Finish] = {}
    texts: dict[str, list[int]] = {}
    measure(llm, plain)
    for _ in range(REPEATS):
        for kind, request in kinds.items():
            spent, ends[kind], texts[kind] = measure(llm, request)
            seconds[kind].append(spent)
    assert texts["regenerate"] == texts["draft from the file"]
    same = sum(a == b for a, b in zip(texts["regenerate"], existing, strict=False)) / len(existing)
    for kind in kinds:
        usage = ends[kind].usage
        row = {
            "what": kind,
            "tokens": usage.completion_tokens,
            "passes": usage.passes,
            "tokens_per_pass": round(usage.tokens_per_pass, 2),
            "seconds_median": round(statistics.median(seconds[kind]), 3),
            "seconds": [round(value, 3) for value in seconds[kind]],
            "share_equal_to_file": round(same, 3),
            "device": platform.processor() or platform.machine(),
        }
        print(json.dumps(row))
        if output:
            with output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
