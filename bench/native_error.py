"""How far the native backend's logits are from fp32 PyTorch's, next to llama.cpp's on the same file.

Usage: python bench/native_error.py [--output bench/results/native_error.jsonl]

Chat (the model's own greedy answers), code (this repository's) and prose (its documentation), every position
of each. llama.cpp takes part where llama-cpp-python can be imported.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from vermilion.config import EngineConfig
from vermilion.decoding.forward_jobs import Job, Wanted
from vermilion.decoding.passes import Pass, Read, Segment
from vermilion.engine.llm import LLM
from vermilion.engine.worker import Worker
from vermilion.evaluation.environment import processor
from vermilion.evaluation.fixed_prompts import CHAT
from vermilion.models import catalog
from vermilion.native.runner import NativeRunner
from vermilion.types import Sampling

ROOT = Path(__file__).resolve().parent.parent
WINDOW = 384
WINDOWS = 3
"""Of each kind: more than 3,000 positions in all."""
Logits = Callable[[list[int]], np.ndarray]


def texts(llm: LLM) -> Iterator[tuple[str, list[int]]]:
    """(kind, a window of token ids)"""
    sampling = Sampling(max_tokens=120, ignore_eos=True)
    chats = [tuple(llm.chat_prompt([{"role": "user", "content": question}])) for question in CHAT]
    answers = llm.generate(chats, sampling, "ar")
    talk = "\n".join(question + "\n" + answer.text for question, answer in zip(CHAT, answers, strict=True))
    code = (ROOT / "src/vermilion/decoding/speculative.py").read_text(encoding="utf-8")
    prose = (ROOT / "docs/OPERATIONS.md").read_text(encoding="utf-8")
    for kind, text in (("chat", talk), ("code", code), ("prose", prose)):
        ids = llm.tokenizer.encode(text)
        for at in range(0, min(len(ids), WINDOWS * WINDOW), WINDOW):
            yield kind, ids[at : at + WINDOW]


def whole(ids: list[int]) -> list[Job]:
    segment = Segment(tuple(ids), 0, 0, sees=0, span=1)
    reads = tuple(Read(row, row + 1, "next") for row in range(len(ids)))
    wanted = [Wanted(Sampling(), read.position) for read in reads]
    return [Job(range(-(-len(ids) // 16)), Pass((segment,), reads), wanted)]


def of_torch(llm: LLM) -> Logits:
    worker = llm.engine.worker
    assert isinstance(worker, Worker)
    seen: list[torch.Tensor] = []
    compute = worker.model.logits

    def kept(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(compute(hidden))
        return seen[-1].clone()

    worker.model.logits = kept  # type: ignore[method-assign]

    def logits(ids: list[int]) -> np.ndarray:
        seen.clear()
        worker.run(whole(ids))
        return seen[0].numpy()

    return logits


def of_native(llm: LLM) -> Logits:
    runner = llm.engine.worker
    assert isinstance(runner, NativeRunner)

    def logits(ids: list[int]) -> np.ndarray:
        runner.keep_logits = True
        runner.run(whole(ids))
        runner.keep_logits = False
        return np.array(runner.logits)

    return logits


def of_llama_cpp() -> Logits | None:
    try:
        from llama_cpp import Llama
    except ImportError:
        return None
    path = str(catalog.find(catalog.DEFAULT_MODEL).base)
    llama = Llama(path, n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, verbose=False)

    def logits(ids: list[int]) -> np.ndarray:
        llama.reset()
        llama.eval(ids)
        return np.array(llama.scores[: len(ids)])

    return logits


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def measured(name: str, given: np.ndarray, exact: np.ndarray, ids: list[int]) -> dict[str, float]:
    difference = np.abs(given - exact)
    following = (np.arange(len(ids) - 1), ids[1:])
    return {
        "positions": len(ids),
        "max_logit": float(difference.max()),
        "sum_mean_logit": float(difference.mean(-1).sum()),
        "argmax_equal": int((given.argmax(-1) == exact.argmax(-1)).sum()),
        "nll": float(-log_probabilities(given)[:-1][following].sum()),
        "exact_nll": float(-log_probabilities(exact)[:-1][following].sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    output = parser.parse_args().output
    native = LLM(config=EngineConfig(backend="native"))
    exact = of_torch(LLM(config=EngineConfig(backend="torch", dtype="float32")))
    peers = {"native": of_native(native), "llama.cpp": of_llama_cpp()}
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for kind, ids in texts(native):
        truth = exact(ids)
        for name, logits in peers.items():
            if logits is None:
                continue
            for key, value in measured(name, logits(ids), truth, ids).items():
                row = rows.setdefault((name, kind), {})
                row[key] = max(row.get(key, 0.0), value) if key == "max_logit" else row.get(key, 0) + value
    for (name, kind), row in rows.items():
        count = row["positions"]
        line = {
            "benchmark": "native_error", "date": f"{datetime.date.today()}", "machine": processor(),
            "backend": name, "text": kind, "positions": int(count),
            "max_logit": round(row["max_logit"], 3), "mean_logit": round(row["sum_mean_logit"] / count, 4),
            "argmax_equal": round(row["argmax_equal"] / count, 4),
            "nll": round(row["nll"] / count, 4), "fp32_nll": round(row["exact_nll"] / count, 4),
        }  # fmt: skip
        print(json.dumps(line))
        if output:
            with output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
