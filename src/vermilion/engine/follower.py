"""A process that holds a part of a model and runs the passes that the leading process runs (`python -m`).

It is told what to do through a pipe, by nobody but the process that started it, and ends with it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed

from vermilion.config import EngineConfig
from vermilion.engine.worker import Worker
from vermilion.errors import ConfigError, VermilionError
from vermilion.models import adapters
from vermilion.models.build import BuiltModel, build
from vermilion.models.catalog import ModelFiles
from vermilion.models.shares import Peers, Share

# Parts of it that its annotations leave out: a group of a model's own, beside whatever others there are.
_dist: Any = torch.distributed
_TIMEOUT = timedelta(seconds=120)
"""Of a sum over the processes: one that takes longer waits for somebody who will not come."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """What a process must know to take part."""

    files: ModelFiles
    config: EngineConfig
    rank: int
    store: str
    """A file that none but these processes may read, through which they find each other."""

    @property
    def device(self) -> torch.device:
        """Raises ConfigError where there are fewer GPUs than processes."""
        name, count = self.config.device, torch.cuda.device_count()
        if name == "cpu" or (name == "auto" and not count):
            return torch.device("cpu")
        if name not in ("auto", "cuda") or count < self.config.tensor_parallel:
            raise ConfigError(
                f"engine.device: {name!r} with engine.tensor_parallel={self.config.tensor_parallel}, and "
                f"{count} GPUs here; give cuda with as many GPUs, or cpu."
            )
        return torch.device("cuda", self.rank)


def joined(start: Start) -> Share:
    """This process among the others; returns when all are there."""
    size, device = start.config.tensor_parallel, start.device
    store = _dist.FileStore(start.store, size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        return Share(start.rank, size, Peers(_dist.ProcessGroupNCCL(store, start.rank, size)))
    cores = start.config.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // size))
    options = _dist.ProcessGroupGloo._Options()
    # Nobody outside this machine is to take part.
    options._devices = [_dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout = _TIMEOUT
    return Share(start.rank, size, Peers(_dist.ProcessGroupGloo(store, start.rank, size, options)))


def part_of_model(start: Start, share: Share) -> BuiltModel:
    """Raises ConfigError and ModelFileError."""
    from vermilion.engine.loading import dtype_of

    device = start.device
    built = build(start.files, dtype_of(start.config.dtype, device), device, share=share)
    built.model.eval().requires_grad_(False)
    return built


def open_worker(built: BuiltModel, num_pages: int, page_size: int) -> Worker:
    return Worker(built.model, num_pages, page_size, built.spec.traits.mask_token_id)


def main() -> None:
    """Follows until the pipe is closed."""
    # Ctrl-C and a service manager's signal reach every process; the leading one lets answers finish first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    pipe = Connection(int(sys.argv[1]))
    start: Start = pipe.recv()
    pipe.send("imported")
    try:
        built = part_of_model(start, joined(start))
        pipe.send("read")
        _follow(built, pipe)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the leading process has ended
    except VermilionError as error:
        sys.exit(f"rank {start.rank}: {error}")


def _follow(built: BuiltModel, pipe: Connection) -> None:
    verb, *given = pipe.recv()
    assert verb == "open"
    worker = open_worker(built, *given)
    pipe.send("open")
    while True:
        verb, *given = pipe.recv()
        carry_out(worker, verb, given)


def carry_out(worker: Worker, verb: str, given: Sequence[Any]) -> None:
    """One command of the leading process."""
    if verb == "attach":
        name, folder = given
        worker.attach(name, adapters.read(folder, worker.model))
    else:
        getattr(worker, verb)(*given)


if __name__ == "__main__":
    main()
