"""Why `models/product.py` chooses as it does: fp32 products on this CPU, three ways, in one run.

Usage: python bench/products.py [--output bench/results/products.jsonl]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from vermilion.models import catalog
from vermilion.models.configuration import spec_of

REPEATS = 15


def milliseconds(work: Callable[[], object]) -> tuple[float, float]:
    """Median and spread (highest - lowest over median) of the timed runs."""
    work()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - began))
    middle = statistics.median(times)
    return middle, (max(times) - min(times)) / middle


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    output = parser.parse_args().output
    a = spec_of(catalog.find(catalog.DEFAULT_MODEL)).architecture
    qkv = (a.num_heads + 2 * a.num_kv_heads) * a.head_dim
    shapes = [(qkv, a.hidden_size), (a.hidden_size,) * 2, (2 * a.ffn_size, a.hidden_size)]
    shapes.append((a.hidden_size, a.ffn_size))
    weights = [torch.randn(shape) for _ in range(a.num_layers) for shape in shapes]
    print("all projections of the embedded model, ms: rows, x W^T, W x^T, oneDNN")
    for num_rows in (1, 2, 3, 4, 5, 6, 8, 12, 16, 32, 64, 128, 256):
        inputs = {size: torch.randn(num_rows, size) for size in (a.hidden_size, a.ffn_size)}
        plain, plain_spread = milliseconds(
            lambda inputs=inputs: [F.linear(inputs[w.shape[1]], w) for w in weights]
        )
        turned, turned_spread = milliseconds(
            lambda inputs=inputs: [torch.mm(w, inputs[w.shape[1]].t()) for w in weights]
        )
        other, other_spread = milliseconds(
            lambda inputs=inputs: [
                torch.ops.mkldnn._linear_pointwise(inputs[w.shape[1]], w, None, "none", [], "")
                for w in weights
            ]
        )
        print(f"{num_rows:4d} {plain:8.1f} {turned:8.1f} {other:8.1f}")
        if output:
            row = {
                "benchmark": "products", "date": time.strftime("%Y-%m-%d"), "device": platform.processor(),
                "torch": torch.__version__, "threads": torch.get_num_threads(),
                "rows": num_rows, "x_wt_ms": plain, "x_wt_spread": plain_spread,
                "w_xt_ms": turned, "w_xt_spread": turned_spread,
                "onednn_ms": other, "onednn_spread": other_spread,
            }  # fmt: skip
            with output.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
