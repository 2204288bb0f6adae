"""A service on the fake engine in a process of its own, which can be killed: `python -m ... WORDS STEP_S`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from serving.fake import MODEL, FakeBackend, served
from vermilion.serving.backend import Served
from vermilion.serving.http import server
from vermilion.serving.serve_config import ServeConfig


@dataclass(frozen=True, slots=True)
class UpstreamProcess:
    id: int
    url: str

    def kill(self) -> None:
        os.kill(self.id, signal.SIGKILL)


@contextmanager
def upstream_process(num_words: int, step_s: float) -> Iterator[UpstreamProcess]:
    """Answers with so many words, one every `step_s`."""
    command = [sys.executable, "-m", "serving.remote.upstream_process", str(num_words), str(step_s)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield UpstreamProcess(process.pid, process.stdout.readline().strip())
        finally:
            process.kill()


def main() -> None:
    num_words, step_s = int(sys.argv[1]), float(sys.argv[2])
    words = tuple(f"word{number} " for number in range(num_words))
    model = replace(MODEL, context_length=4096)

    @asynccontextmanager
    async def load() -> AsyncIterator[Served]:
        yield served(FakeBackend(words=words, step_s=step_s, capacity=1000, model=model))

    server.run(ServeConfig(port=0), load, lambda url: print(url, flush=True))


if __name__ == "__main__":
    main()
