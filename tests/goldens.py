"""Small random checkpoints in published layouts, and what their publishers' own code computes with them.

Each folder of `tests/golden` holds `config.json` as published, `golden.safetensors` (inputs, logits and the
trajectories of samplers, computed once outside the project) and `provenance.json` (whose code, which commit,
which versions). The weights are not kept: they follow from their names.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vermilion.decoding.forward_jobs import Job, Wanted
from vermilion.decoding.passes import Pass, Read
from vermilion.engine.worker import Worker
from vermilion.models.build import BuiltModel, build, expected_shapes
from vermilion.models.catalog import ModelFiles
from vermilion.models.configuration import spec_from_config
from vermilion.types import Sampling

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Golden:
    """One of them."""

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    provenance: Mapping[str, str]

    @classmethod
    def read(cls, name: str) -> Golden:
        folder = FOLDER / name
        config, provenance = (
            json.loads((folder / file).read_text(encoding="utf-8"))
            for file in ("config.json", "provenance.json")
        )
        return cls(name, config, load_file(folder / "golden.safetensors"), provenance)

    def built(self, folder: Path, dtype: torch.dtype = torch.float32) -> BuiltModel:
        """The checkpoint, written under `folder` and read as any other."""
        written = write_checkpoint(self.config, folder / self.name)
        return build(ModelFiles("folder", self.name, written, None), dtype)

    @property
    def reference(self) -> str:
        """Whose code it is, in one line."""
        return f"{self.provenance['repository']} at {self.provenance['commit'][:12]}"


def random_weight(name: str, shape: tuple[int, ...], spread: float = 0.0) -> Tensor:
    """A tensor that follows from its name: norms around 1, products of the standard deviation `spread`, or
    that keep the size of what goes in."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    drawn = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 0.2 * drawn if name.endswith("bias") else 1 + 0.2 * drawn
    vocabulary = "embed" in name or "head" in name
    # What a step hears of the last one is kept small, or what it rounds off would grow from step to step.
    size = 0.3 if "self_conditioning" in name else 1.2
    return drawn * (0.3 if vocabulary else spread or size / math.sqrt(shape[-1]))


def write_checkpoint(config: Mapping[str, Any], folder: Path) -> Path:
    """The checkpoint of a published config, with `random_weight`s under its family's names."""
    spec = spec_from_config(config, folder.name)
    shapes = expected_shapes(spec.architecture, spec.family.names)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    spread = config.get("initializer_range", 0.0)
    tensors = {name: random_weight(name, shape, spread) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def all_logits(worker: Worker, rows: Pass, pages: Sequence[int] = ()) -> Tensor:
    """The logits [rows, V] of one pass of the request `a`, which holds these pages, else all."""
    reads = tuple(Read(row, 0, "mask") for row in range(rows.num_rows))
    asked = Pass(rows.segments, reads)
    caught: list[Tensor] = []
    compute = worker.model.logits

    def watched(hidden_RH: Tensor) -> Tensor:
        caught.append(compute(hidden_RH))
        return caught[0].clone()

    worker.model.logits = watched  # type: ignore[method-assign]
    try:
        pages = pages or range(worker.pool.shape[1] // worker.page_size)
        worker.run([Job(pages, asked, [Wanted(Sampling(), 0)] * len(reads), request="a")])
    finally:
        worker.model.logits = compute  # type: ignore[method-assign]
    return caught[0]
