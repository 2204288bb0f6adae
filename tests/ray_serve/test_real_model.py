"""`vermilion serve --ray` with the embedded model says what `vermilion serve` says."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.model]
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Name three colours."}], "max_tokens": 24}
RUN = "import sys; from vermilion.cli import main; sys.exit(main())"


def answer(options: list[str], tmp_path: Path) -> tuple[str, int]:
    """Of a service with these options, and its exit status after SIGTERM."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment |= {"VERMILION_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, "serve", "--threads", "1", "--set", f"serve.data_folder={tmp_path}"]
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log, env=environment)
    try:
        transport = httpx.HTTPTransport(retries=8)
        with httpx.Client(base_url=url, timeout=60, transport=transport) as client:
            while client.get("/ready").status_code != 200:
                assert process.poll() is None, (tmp_path / "log").read_text()[-4000:]
            reply = client.post("/v1/chat/completions", json=BODY)
        assert reply.status_code == 200, reply.text
        process.send_signal(signal.SIGTERM)
        return reply.json()["choices"][0]["message"]["content"], process.wait(60)
    finally:
        process.kill()
        process.wait()


def test_the_real_model_answers_as_it_does_alone(tmp_path: Path) -> None:
    two = ["--ray", "--set", "ray.min_replicas=2", "--set", "ray.max_replicas=2"]
    alone, spread = answer([], tmp_path), answer(two, tmp_path)
    assert spread == alone
    assert alone[1] == 0 and len(alone[0]) > 10
