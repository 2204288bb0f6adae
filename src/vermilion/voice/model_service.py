"""The service that answers: one that runs, or one that is started for as long as the voice process lives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from vermilion.errors import BadParameter

_PROBE_TIMEOUT_S = 2.0
_END_TIMEOUT_S = 10.0


def answers(url: str) -> bool:
    """Whether a service listens at `url`, ready or still loading."""
    try:
        with build_opener(ProxyHandler({})).open(f"{url}/ready", timeout=_PROBE_TIMEOUT_S):
            return True
    except HTTPError:
        return True
    except (URLError, OSError):
        return False


@contextmanager
def started(url: str, model: str) -> Iterator[int]:
    """Runs `vermilion serve` at `url`, an address of this machine; gives its process id."""
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost") or parts.port is None:
        raise BadParameter("--service", url, "the address of a running service, or http://127.0.0.1:PORT")
    script = "import sys; from vermilion.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "serve", "--host", "127.0.0.1", "--port", str(parts.port)]
    process = subprocess.Popen([*command, "--model", model])
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
