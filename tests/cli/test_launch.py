"""The service as a user starts it: a process, a model, a first answer, a signal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import vermilion

MAIN = "import sys; from vermilion.cli import main; sys.exit(main())"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(vermilion.__file__).parent.parent)}


@pytest.mark.model
@pytest.mark.slow
def test_a_served_model_answers_the_demo_and_ends_cleanly_on_sigterm() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", MAIN]
    serving = subprocess.Popen(
        [*command, "serve", "--port", port, "--set", "engine.kv_tokens=1024"],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        demo = [*command, "demo", "--url", f"http://127.0.0.1:{port}", "--pid", str(serving.pid)]
        asked = [*demo, "--prompt", "Say hello in one word.", "--wait-s", "90"]
        done = subprocess.run(
            asked, env=ENVIRONMENT, capture_output=True, text=True, timeout=110, check=False
        )
        serving.send_signal(signal.SIGTERM)
        log = serving.communicate(timeout=40)[1]
    finally:
        serving.kill()
    assert done.returncode == 0, done.stderr + log
    answer, figures = done.stdout.split("\n\n")[0], done.stdout.splitlines()[-2]
    assert answer.strip()
    assert "tokens per pass" in figures
    assert serving.returncode == 0, log
    assert "hello" not in log.lower(), "prompts must not be logged"
