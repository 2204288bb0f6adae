"""Several processes, one run: `torchrun` starts them, FSDP2 shards the weights, each trains its rows.

Every process draws the same batch and noise and takes its own rows; losses are divided by the whole batch's
weight; so the figures are those of one process up to the order of sums.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

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


def joined() -> World:
    """The process group that torchrun's variables describe; a world of one without them.

    The group lasts as long as the process: a second one over the same rendezvous would read the addresses
    that the first one left there, and two runs in one launch would wait for each other for ever.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(dist.destroy_process_group)
    return World(dist.get_rank(), dist.get_world_size())


def shard(model: Transformer) -> None:
    """Split every parameter over the processes, in place, gathered layer by layer while it is needed.

    `model.over_text(work)` runs `work` with the embedding and the last norm whole.
    """
    # Takes a second to import, which a run of one process need not wait for.
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # What it warns of is writing into what a layer returns, which nothing here does.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
    for layer in model.layers:
        fully_shard(layer)
    model.over_text = MethodType(_call, model)  # type: ignore[assignment]
    fully_shard(model)
    register_fsdp_forward_method(model, "over_text")


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one; every process must ask."""
    full: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A full `tensor`, the same in every process, split and placed as `other` is."""
    if hasattr(other, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        placed = cast(DTensor, other)
        return distribute_tensor(tensor.to(placed.device), placed.device_mesh, placed.placements)
    return tensor.to(other.device)


def _call(model: Transformer, work: Callable[[], Any]) -> Any:
    return work()


def _device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
