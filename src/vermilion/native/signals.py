"""What the rows of a canvas hear of the last pass over it: `engine/conditioning.py` for the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vermilion.decoding.forward_jobs import Job


class Signals:
    """Mean embeddings [canvas, size] by request, float32."""

    def __init__(self, size: int) -> None:
        """`size`: of a hidden state as the kernels keep it."""
        self.size = size
        self._kept: dict[str, Any] = {}

    def of_rows(self, jobs: Sequence[Job], num_rows: int) -> Any:
        """[num_rows, size], rows as the jobs list them, zeros where there is nothing; None if all are."""
        if not any(segment.conditioned for job in jobs for segment in job.rows.segments):
            return None
        made = np.zeros((num_rows, self.size), np.float32)
        row = 0
        for job in jobs:
            noisy: list[int] = []
            told = any(segment.conditioned for segment in job.rows.segments)
            for segment in job.rows.segments:
                count = len(segment.ids)
                noisy += range(row, row + count) if segment.noisy and told else ()
                row += count
            if noisy:
                made[noisy] = self._kept[job.request]
        return made

    def keep(self, jobs: Sequence[Job], made: Any) -> None:
        """Remember what the canvases' rows were read as. `made`: [reads of all jobs, size]."""
        first = 0
        for job in jobs:
            canvas = [first + i for i, read in enumerate(job.rows.reads) if read.purpose == "canvas"]
            first += len(job.rows.reads)
            if canvas and job.request:
                self._kept[job.request] = made[canvas]

    def release(self, request: str) -> None:
        self._kept.pop(request, None)
