"""Several processes, one run: `torchrun` starts them, FSDP2 shards the weights, each trains its rows.

Every process draws the same batch and noise and takes its own rows; losses are divided by the whole batch's
weight; so the figures are those of one process up to the order of sums.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from vermilion.models.transformer import Transformer


@dataclass(frozen=True, slots=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def part(self, num_rows: int) -> tuple[int, int]:
        """The rows [start, end) of a batch that are this process's; `num_rows` is a multiple of the size."""
        own = num_rows // self.size
        return self.rank * own, (self.rank + 1) * own

    def total(self, *values: float) -> list[float]:
        """Sums over all processes."""
        if self.size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=_device())
        dist.all_reduce(summed)
        return [float(value) for value in summed]

    def first(self, *values: float) -> list[float]:
        """The first process's values."""
        return self.total(*(value if self.is_first else 0.0 for value in values))

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined() -> Iterator[World]:
    """The process group that torchrun's variables describe; a world of one without them."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    started = not dist.is_initialized()
    if started:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        if started:
            dist.destroy_process_group()


def shard(model: Transformer, run_layer: Callable[..., Any]) -> None:
    """Split every parameter over the processes, in place, gathered layer by layer while it is needed.

    `layer.over_text` is then `run_layer` with the layer's weights whole, and `model.over_text(work)` runs
    `work` with the embedding and the last norm whole.
    """
    for layer in model.layers:
        layer.over_text = MethodType(run_layer, layer)  # type: ignore[assignment]
        fully_shard(layer)
        register_fsdp_forward_method(layer, "over_text")
    model.over_text = MethodType(_call, model)  # type: ignore[assignment]
    fully_shard(model)
    register_fsdp_forward_method(model, "over_text")


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A full `tensor`, the same in every process, split and placed as `other` is."""
    if isinstance(other, DTensor):
        return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
    return tensor.to(other.device)


def _call(model: Transformer, work: Callable[[], Any]) -> Any:
    return work()


def _device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
