"""What the rows of a canvas are told of the last pass over it, kept on the device from pass to pass.

Shapes: M noisy rows of the forward, R read rows, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vermilion.decoding.forward_jobs import Job
from vermilion.engine.device_state import DeviceStates
from vermilion.models.transformer import Transformer

_SIGNAL = "signal"
_CHUNK = 32
"""Rows whose distributions are in memory at once: those of 256 over a large vocabulary take a gigabyte."""


def signal(model: Transformer, states: DeviceStates, jobs: Sequence[tuple[Job, Sequence[int]]]) -> Tensor:
    """What each noisy row is conditioned on, [M, H]; zeros where there is nothing yet.

    `jobs`: each with where its noisy rows stand among all noisy rows.
    """
    num_noisy = sum(len(rows) for _, rows in jobs)
    signal_MH = model.norm.weight.new_zeros(num_noisy, model.architecture.hidden_size)
    for job, rows in jobs:
        if any(segment.conditioned for segment in job.rows.segments):
            signal_MH[list(rows)] = states.of(job.request).tensors[_SIGNAL]
    return signal_MH


def keep(model: Transformer, states: DeviceStates, jobs: Sequence[Job], logits_RV: Tensor) -> None:
    """Remember what the canvases' rows were read as, for their next pass. `logits_RV`: as they were sampled
    from, of all reads of all jobs."""
    at = 0
    for job in jobs:
        reads = range(at, at + len(job.wanted))
        at = reads.stop
        canvas = [row for row, read in zip(reads, job.rows.reads, strict=True) if read.purpose == "canvas"]
        if canvas and job.request:
            # Each row by itself, whatever stands beside it in the forward.
            parts = [
                model.soft_embedding(torch.softmax(logits_RV[canvas[i : i + _CHUNK]], -1))
                for i in range(0, len(canvas), _CHUNK)
            ]
            states.of(job.request).tensors[_SIGNAL] = torch.cat(parts)
