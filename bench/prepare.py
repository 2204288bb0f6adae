"""Host time that a pass costs beside its forward, behind a short text and behind a long one.

    OMP_NUM_THREADS=1 python bench/prepare.py --output bench/results/prepare.jsonl

A request of a model as wide as the embedded one runs passes of 5 settled and 8 masked rows, each further in
the text, as drafting does; its pages lie in one run or scattered. Contexts take turns, so that whatever else
the machine does slows all. Figures are medians in ms, with the least and the most, of making the tensors of
a pass; two layers do, since that does not depend on how many there are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

import torch

from training import commit, spread
from vermilion.decoding.forward_jobs import Job
from vermilion.decoding.passes import Pass, Segment
from vermilion.engine.worker import Worker
from vermilion.models.families import Architecture
from vermilion.models.transformer import Transformer

CONTEXTS, PAGE_SIZE, NUM_PAGES = (128, 8000), 16, 1024
SETTLED, MASKED, MASK = 5, 8, 16
SHAPE = Architecture(2, 576, 9, 3, 64, 1536, 256, 16384)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--output", type=Path, help="append the row to this file")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model = Transformer(SHAPE).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    worker = Worker(model, NUM_PAGES, PAGE_SIZE, MASK)
    arms = {
        f"{context} {layout}": (context, range(0, NUM_PAGES, step))
        for context in CONTEXTS
        for layout, step in (("in one run", 1), ("scattered", 2))
    }
    taken: dict[str, list[float]] = {arm: [] for arm in arms}
    for repeat in range(given.repeats + 1):
        for arm, (context, pages) in arms.items():
            before = worker.timing.prepare_s
            worker.run([job(arm, pages, context + 3 * repeat)])
            if repeat:  # the first pass of a request makes its table
                taken[arm].append(1e3 * (worker.timing.prepare_s - before))
    row = {
        "benchmark": "prepare",
        "command": "bench/prepare.py",
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "load_average": round(os.getloadavg()[0], 1),
        "rows": SETTLED + MASKED,
        "repeats": given.repeats,
        "prepare_ms": {arm: spread(values) for arm, values in taken.items()},
    }
    print(json.dumps(row))
    if given.output:
        with given.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def job(name: str, pages: range, context: int) -> Job:
    settled = Segment((5,) * SETTLED, context, context, context, span=1)
    at = context + SETTLED
    masked = Segment((MASK,) * MASKED, at, at, at, span=0, noisy=True, masked=(True,) * MASKED)
    rows = Pass((settled, masked))
    return Job(pages[: -(-rows.num_slots // PAGE_SIZE)], rows, [], request=name)


if __name__ == "__main__":
    main()
