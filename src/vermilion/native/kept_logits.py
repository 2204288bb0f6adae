"""What is made of the logits that the library hands out beside its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vermilion.decoding.forward_jobs import Job
from vermilion.decoding.passes import Reading


def guide(
    jobs: Sequence[Job], answers: list[list[Reading]], logits: Any, guides: Sequence[int], mask_token: int
) -> None:
    """Replace the answers of the reads `guides`, by their index over all jobs. The last of `logits`, [reads,
    vocabulary], are of what counts against them, in their order; theirs are changed as well.

    Chosen by PyTorch: every such pass runs twice as many rows as another, so this is not what it takes.
    """
    import torch

    from vermilion.decoding.sampling import read

    where = [(number, i) for number, job in enumerate(jobs) for i in range(len(job.wanted))]
    guided, index = [where[each] for each in guides], list(guides)
    against = logits[len(where) :]
    scale = [[1 + jobs[number].rows.reads[i].guidance] for number, i in guided]
    logits[index] = against + np.array(scale, np.float32) * (logits[index] - against)
    wanted = [jobs[number].wanted[i] for number, i in guided]
    for (number, i), reading in zip(
        guided, read(torch.from_numpy(logits[index]), wanted, mask_token), strict=True
    ):
        answers[number][i] = reading


def log_softmax(logits: Any, mask_token: int) -> Any:
    """Log-probabilities without the mask, of one read's logits; float64."""
    logits = logits.astype(np.float64)
    logits[mask_token] = -np.inf
    return logits - np.logaddexp.reduce(logits)


def divergence(now: Any, before: Any) -> float:
    """KL divergence from `before` to `now`, log-probabilities, in nats."""
    kept = now > -np.inf
    return float((np.exp(now[kept]) * (now[kept] - before[kept])).sum())
