"""Several processes that answer calls at one address: one Python process keeps about one core busy."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from types import FrameType
from typing import NoReturn

from vermilion.errors import EngineFailure

_AT_START_S = 60.0
_END_TIMEOUT_S = 15.0
_LOOK_AGAIN_S = 0.2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CallProcess:
    """What one of the processes is given."""

    listeners: list[socket.socket]
    """The one that all share, and its own."""
    others: list[str]
    """URLs of the other processes' own."""
    ready: Event
    """To be set when calls are answered."""


def answer_in_processes(
    number: int, listener: socket.socket, answer: Callable[[CallProcess], None], opened: Callable[[], None]
) -> None:
    """Runs `answer`, which is pickled, in so many processes until a signal; one that ends is begun again.
    `opened` is called when all are ready. Raises EngineFailure for one that ends at its start."""
    context = multiprocessing.get_context("spawn")
    own = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    urls = [f"http://127.0.0.1:{each.getsockname()[1]}" for each in own]
    ready = [context.Event() for _ in range(number)]

    def begin(index: int) -> SpawnProcess:
        others = [url for url in urls if url != urls[index]]
        place = CallProcess([listener, own[index]], others, ready[index])
        process = context.Process(target=answer, args=(place,), name=f"calls-{index}")
        process.start()
        return process

    signal.signal(signal.SIGTERM, _end)
    running = [begin(index) for index in range(number)]
    began_at = [time.monotonic()] * number
    told = False
    try:
        while True:
            ended = wait([process.sentinel for process in running], _LOOK_AGAIN_S)
            for index, process in enumerate(running):
                if process.sentinel in ended:
                    _check_age(process, began_at[index])
                    running[index], began_at[index] = begin(index), time.monotonic()
            if not told and all(each.is_set() for each in ready):
                told = True
                opened()
    except KeyboardInterrupt:
        pass
    finally:
        _stop(running)
        for each in own:
            each.close()


def _check_age(process: SpawnProcess, began_at: float) -> None:
    process.join()
    if time.monotonic() - began_at < _AT_START_S:
        raise EngineFailure(f"A process for calls ended at its start, with status {process.exitcode}.")
    _log.error("a process for calls ended with status %s; another is begun", process.exitcode)


def _stop(running: list[SpawnProcess]) -> None:
    for process in running:
        process.terminate()
    deadline = time.monotonic() + _END_TIMEOUT_S
    for process in running:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
