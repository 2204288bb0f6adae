"""The service as its users start it: a process of its own, on a port of its own, with the embedded model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

MODEL = "smollm2-135m-diffusion"
_START = "from vermilion.cli import main; raise SystemExit(main())"
_START_TIMEOUT_S = 500
"""Some seconds on an idle machine; minutes where ten others use its two cores."""
_STOP_TIMEOUT_S = 200
_REQUEST = re.compile(r"req-\w+ (GET|POST|HEAD) (\S+) (\d+) ")


@dataclass(frozen=True, slots=True)
class Running:
    """One service and what it wrote to its log."""

    url: str
    log: Path

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    def requests(self) -> list[str]:
        """What was asked of it so far, as the log tells it: `POST /v1/chat/completions 200`."""
        return [" ".join(found) for found in _REQUEST.findall(self.log.read_text(errors="replace"))]


@contextmanager
def running(log: Path, settings: Sequence[str] = ()) -> Iterator[Running]:
    """A service with `settings` (dotted overrides) until the end of the block."""
    # Threads that wait for a core which others use spin: 41 s of CPU were seen for answers that cost 8.
    threads = os.environ.get("OMP_NUM_THREADS", "0")
    overrides = [word for setting in (f"engine.threads={threads}", *settings) for word in ("--set", setting)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, "serve", "--port", "0", *overrides],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
        )
        try:
            yield Running(_ready(process, log), log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """Its address, once the model is loaded."""
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        found = re.search(r"(http://127\.0\.0\.1:\d+) is open", log.read_text(errors="replace"))
        # Where others use the cores, an answer may take longer than a client waits.
        with suppress(httpx.TimeoutException):
            if found and httpx.get(f"{found[1]}/ready").status_code == 200:
                return found[1]
        time.sleep(0.25)
    raise RuntimeError(f"the service did not start:\n{log.read_text(errors='replace')[-2000:]}")
