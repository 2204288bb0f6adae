"""Training's rate beside the machine's own: one row of JSON.

    OMP_NUM_THREADS=1 python bench/training.py --method adapter

Steps of a real recipe on the embedded model alternate with single large products of the same shape and
precision, so that whatever else the machine does slows both. FLOPs are those of the model, two for a weight
and row, whichever way they are computed: forward of clean and noisy rows, backward of trained streams (its
input's gradients; weights' only where they are trained), attention where the mask lets it look, the head on
scored rows. Rates are given by the wall clock and by CPU time; on a busy machine the second one counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from vermilion.config import build
from vermilion.data.packing import next_batch
from vermilion.models import catalog
from vermilion.models.families import Architecture
from vermilion.training import convert, corruption, finetune, loop
from vermilion.training.denoise import Noisy, add_noise
from vermilion.training.distributed import World
from vermilion.training.masks import Layout, two_pass
from vermilion.training.recipe import Recipe
from vermilion.training.run import Progress, Run

SENTENCE = "The quick brown fox jumps over the lazy dog while the rain falls on the old stone bridge. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=("adapter", "lora"), default="adapter")
    parser.add_argument("--autocast", action="store_true", help="bfloat16 products")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--output", type=Path, help="append the row to this file")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as folder:
        run = opened(given, Path(folder))
        row = {
            "command": f"bench/training.py --method {given.method}" + " --autocast" * given.autocast,
            "commit": commit(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "load_average": round(os.getloadavg()[0], 1),
            **measured(run, given),
        }
    print(json.dumps(row))
    if given.output:
        with given.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def opened(given: argparse.Namespace, folder: Path) -> Run:
    examples = folder / "examples.jsonl"
    lines = [{"prompt": f"Copy number {i}.", "response": SENTENCE * (4 + i % 9)} for i in range(64)]
    examples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = {
        "base": catalog.DEFAULT_MODEL,
        "output": str(folder),
        "rows": given.rows,
        "micro_rows": given.rows,
        "autocast": given.autocast,
    }
    data = {"sources": [{"path": str(examples)}], "length": 256, "held_out": 0}
    if given.method == "lora":
        recipe = build(Recipe, finetune.with_defaults({**common, "data": data}))
        return finetune.prepare(recipe, catalog.find(recipe.base))
    settings = {**common, "steps": 100, "data": data, "mask_token_id": 16, "objective": {"offset_decay": 4.0}}
    recipe = build(Recipe, settings)
    files = catalog.find(recipe.base)
    return convert.prepare(recipe, files)


def measured(run: Run, given: argparse.Namespace) -> dict[str, object]:
    work = loop._prepared(run, World())
    _, progress = loop._step(work, Progress())  # the first step plans kernels and allocates
    product = products(torch.bfloat16 if given.autocast else torch.float32)
    shares: dict[str, list[float]] = {"wall": [], "cpu": []}
    rates: dict[str, list[float]] = {"wall": [], "cpu": []}
    products_s: dict[str, list[float]] = {"wall": [], "cpu": []}
    tokens, flops = 0, 0.0
    for _ in range(given.steps):
        noisy = the_batch(run, progress)
        flops = count(run, noisy)
        before = timed(product)
        took = timed(lambda progress=progress: loop._step(work, progress))  # type: ignore[misc]
        after = timed(product)
        _, progress = took["result"]  # type: ignore[misc]
        tokens = int((noisy.batch.document_BL >= 0).sum())
        for clock in ("wall", "cpu"):
            own = 2 * PRODUCT_FLOPS / (before[clock] + after[clock])  # type: ignore[operator]
            products_s[clock].append(own / 1e9)
            rates[clock].append(tokens / took[clock])  # type: ignore[operator]
            shares[clock].append(flops / took[clock] / own)  # type: ignore[operator]
    return {
        "steps": given.steps,
        "tokens": tokens,
        "gflop_per_token": round(flops / tokens / 1e9, 3),
        **{
            f"{name}_{clock}": spread(values[clock])
            for clock in ("wall", "cpu")
            for name, values in (
                ("tokens_per_s", rates),
                ("product_gflops", products_s),
                ("share_of_product_rate", shares),
            )
        },
    }


SHAPE = (1024, 576, 3072)
REPEATS = 40
PRODUCT_FLOPS = 2 * SHAPE[0] * SHAPE[1] * SHAPE[2] * REPEATS


def products(dtype: torch.dtype) -> Callable[[], None]:
    """Forty products of the largest kind that a layer has."""
    x, w = torch.randn(SHAPE[0], SHAPE[1], dtype=dtype), torch.randn(SHAPE[2], SHAPE[1], dtype=dtype)

    def run() -> None:
        for _ in range(REPEATS):
            torch.nn.functional.linear(x, w)

    run()
    return run


def the_batch(run: Run, progress: Progress) -> Noisy:
    """What the next step will train on."""
    recipe = run.recipe
    batch, _ = next_batch(run.dataset, recipe.rows, progress.data)
    rng = corruption.noise(recipe.seed, progress.step)
    length = recipe.stages[0].block_length
    return add_noise(recipe, batch, length, run.model.architecture.vocab_size, rng)


def count(run: Run, noisy: Noisy) -> float:
    """FLOPs of a step."""
    recipe, a = run.recipe, run.model.architecture
    rows = noisy.batch.ids_BL.numel()
    clean_BLL, noisy_BL2L = two_pass(Layout(noisy.batch.document_BL, noisy.block_BL, recipe.context))
    head = 2 * a.vocab_size * a.hidden_size
    adapter = 2 * lora_weights(a, recipe.rank)
    layers = 2 * layer_weights(a) * rows
    looks = 4 * a.num_layers * a.num_heads * a.head_dim
    total = layers + looks * int(clean_BLL.sum())
    if recipe.trains_clean:
        scored = int((noisy.next_BL > 0).sum())
        # Backward: the gradient of the input, and for the LoRA that of the weights too.
        total += layers + 2 * looks * int(clean_BLL.sum()) + 3 * adapter * rows + 2 * head * scored
    for copy in noisy.copies:
        scored = int((copy.targets.weight_BL > 0).sum())
        total += 2 * layers + 3 * looks * int(noisy_BL2L.sum()) + 3 * adapter * rows + 2 * head * scored
        total += head * scored * bool(recipe.objective.teacher)
    return float(total)


def layer_weights(a: Architecture) -> int:
    query, key = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    return a.num_layers * a.hidden_size * (2 * query + 2 * key + 3 * a.ffn_size)


def lora_weights(a: Architecture, rank: int) -> int:
    query, key, h, f = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim, a.hidden_size, a.ffn_size
    return a.num_layers * rank * (2 * (h + query) + 2 * (h + key) + 3 * (h + f))


def timed(work: Callable[[], object]) -> dict[str, object]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "result": result}


def spread(values: list[float]) -> list[float]:
    """Median, least, most."""
    return [round(value, 3) for value in (median(values), min(values), max(values))]


def commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
