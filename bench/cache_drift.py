"""How far the caches of fully bidirectional models are from exact decoding, on a toy that has learnt a task.

The toy is trained here, in a few minutes, to write digits in order and then their running sums. It has the
shape and the objective of LLaDA: everything sees everything, a uniform share of the answer is masked. Prints
per cache the share of tokens that differ from exact decoding, the mean KL divergence over the positions that
a pass reads (exact keys against cached ones, over the same text), and the rows computed.

    python bench/cache_drift.py [--steps 800] [--texts 30] [--output bench/results/cache_drift.jsonl]
"""

from __future__ import annotations

import argparse
import json
import platform
import random
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from vermilion.decoding.caches import runs_all
from vermilion.decoding.reference.reference_answer import ReferenceAnswer
from vermilion.models.families import Architecture, Traits
from vermilion.models.transformer import Transformer
from vermilion.training.forward import Forward
from vermilion.types import Decoding, Sampling

VOCAB, MASK, EOS, COLON = 64, 63, 1, 2
LENGTH = 24
TRAITS = Traits("full", False, MASK, (EOS,))
ARCHITECTURE = Architecture(
    num_layers=4,
    hidden_size=96,
    num_heads=4,
    num_kv_heads=4,
    head_dim=24,
    ffn_size=192,
    vocab_size=VOCAB,
    context_length=256,
)
DECODINGS = {
    "schedule": Decoding("schedule", block_length=8),
    "threshold": Decoding("threshold", threshold=0.9, block_length=8),
}


CACHED = {
    "none": {},
    "prefix": {},
    "dual": {},
    "dual, refreshed every 4": {"cache": "dual", "refresh_every": 4},
    "vicinity 4": {"cache": "vicinity", "cache_window": 4},
    "vicinity 4, warm 2": {"cache": "vicinity", "cache_window": 4, "warm_steps": 2},
}


def example(dice: random.Random) -> list[int]:
    """A prompt of digits and a colon, and its answer: the digits in order, then their sums modulo 40."""
    digits = [dice.randrange(10) for _ in range(LENGTH // 2)]
    total, sums = 0, []
    for digit in digits:
        total = (total + digit) % 40
        sums.append(13 + total)
    return [3 + digit for digit in digits] + [COLON] + [3 + digit for digit in sorted(digits)] + sums


def logits_of(model: Transformer, ids_BL: torch.Tensor) -> torch.Tensor:
    """[B, L, VOCAB], with gradients."""
    everything = torch.ones(len(ids_BL), ids_BL.shape[1], ids_BL.shape[1], dtype=torch.bool)
    positions = torch.arange(ids_BL.shape[1]).expand_as(ids_BL)
    hidden, _ = Forward(model).clean(ids_BL, positions, (everything, everything))
    return model.logits(hidden)


def trained(steps: int) -> Transformer:
    """A masked diffusion model of these lines."""
    torch.manual_seed(0)
    model, dice = Transformer(ARCHITECTURE), random.Random(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, 0, 0.05)
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step in range(steps):
        clean = torch.tensor([example(dice) for _ in range(32)])
        share = torch.rand(len(clean), 1).clamp(0.05, 1)
        masked = (torch.rand(clean.shape) < share) & (torch.arange(clean.shape[1]) > LENGTH // 2)
        logits = logits_of(model, clean.masked_fill(masked, MASK))
        loss = F.cross_entropy(logits[masked], clean[masked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    return model.double().requires_grad_(False)


class Drift(ReferenceAnswer):
    """Decodes with a cache and asks the exact model the same questions beside it."""

    divergence = 0.0
    questions = 0
    rows = 0

    def _cached_logits(self, context, block, step):  # type: ignore[no-untyped-def]
        cached = super()._cached_logits(context, block, step)
        exact = self._canvas_logits(context, block)
        self.rows += int((cached != 0).any(1).sum())
        places = [len(context) + i for i, token in enumerate(block) if token is None]
        if not runs_all(self.decoding, step):
            p, q = (F.log_softmax(logits[places], -1) for logits in (exact, cached))
            self.divergence += float((p.exp() * (p - q)).sum())
            self.questions += len(places)
        return cached


def measured(model: Transformer, decoding: Decoding, count: int) -> dict[str, float]:
    dice = random.Random(1)
    different = right = tokens = rows = questions = 0
    divergence = 0.0
    for _ in range(count):
        text = example(dice)
        prompt, size = text[: LENGTH // 2 + 1], len(text) - LENGTH // 2 - 1
        sampling = Sampling(max_tokens=size, ignore_eos=True)
        exact = ReferenceAnswer(model, TRAITS, list(prompt), sampling, replace(decoding, cache="none"))
        cached = Drift(model, TRAITS, list(prompt), sampling, decoding)
        exact.denoise_blocks()
        cached.denoise_blocks()
        answer = cached.tokens[len(prompt) :]
        different += sum(a != b for a, b in zip(answer, exact.tokens[len(prompt) :], strict=True))
        right += sum(a == b for a, b in zip(answer, text[len(prompt) :], strict=True))
        tokens += size
        divergence += cached.divergence
        questions += cached.questions
        rows += cached.rows or cached.passes * len(text)
    return {
        "different": different / tokens,
        "right": right / tokens,
        "mean_kl": divergence / max(1, questions),
        "rows_per_token": rows / tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--texts", type=int, default=30)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    model = trained(options.steps)
    found = []
    for name, decoding in DECODINGS.items():
        for label, settings in CACHED.items():
            decoding_now = replace(decoding, **{"cache": label, **settings})
            row = {"decoder": name, "cache": label, **measured(model, decoding_now, options.texts)}
            print(json.dumps(row), flush=True)
            found.append(row)
    if options.output:
        told = {"steps": options.steps, "texts": options.texts, "python": platform.python_version()}
        options.output.write_text("".join(json.dumps({**told, **row}) + "\n" for row in found))


if __name__ == "__main__":
    main()
