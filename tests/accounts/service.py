"""Services on the fake engine, each in a process of its own that can be killed.

`python -m accounts.service WHERE STEP_S` loads everything once, then starts a service with its accounts for
every line it reads and answers with its process id and address. An answer has a word every STEP_S seconds;
where STEP_S is `held` it ends once its process is released.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace

from serving.fake import MODEL, FakeBackend, served
from vermilion.accounts import database as stores
from vermilion.accounts import gate
from vermilion.accounts.accounts_config import AccountsConfig
from vermilion.serving.backend import Served
from vermilion.serving.http import server
from vermilion.serving.serve_config import ServeConfig

LEASE_S = 1.0
"""Shorter than a real service's: what a killed one had running must not count for long."""
HELD = "held"
NUM_WORDS = 16
CONTEXT_LENGTH = 1_000_000


@dataclass(frozen=True, slots=True)
class Process:
    id: int
    url: str

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.id, signal.SIGKILL)

    def release(self) -> None:
        """Lets the answers of a held service end, those to come too."""
        os.kill(self.id, signal.SIGUSR1)


class Nursery:
    """Starts services of one place; all of them end with it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._started: list[Process] = []

    def start(self) -> Process:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        number, url = self._process.stdout.readline().split()
        self._started.append(Process(int(number), url))
        return self._started[-1]

    def close(self) -> None:
        for process in self._started:
            process.kill()


@contextmanager
def nursery(where: str, step_s: float | str) -> Iterator[Nursery]:
    command = [sys.executable, "-m", "accounts.service", where, str(step_s)]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        opened = Nursery(process)
        try:
            yield opened
        finally:
            opened.close()
            process.kill()


def _serve(where: str, step: str) -> None:
    words = tuple(f"word{number} " for number in range(NUM_WORDS))
    held = step == HELD
    backend = FakeBackend(
        words=words,
        step_s=0.002 if held else float(step),
        endless=held,
        capacity=10_000,
        model=replace(MODEL, context_length=CONTEXT_LENGTH),
    )
    signal.signal(signal.SIGUSR1, lambda *_: setattr(backend, "endless", False))

    @asynccontextmanager
    async def load() -> AsyncIterator[Served]:
        yield served(backend)

    config = ServeConfig(port=0, accounts=AccountsConfig(url=where))
    server.run(config, load, lambda url: print(os.getpid(), url, flush=True))


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    where, step = sys.argv[1:]
    if step != HELD:
        gate.LEASE_S = LEASE_S
    # What opening loads is then loaded in every child.
    stores.open_store(where).close()
    for _ in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _serve(where, step)
            os._exit(0)


if __name__ == "__main__":
    main()
