"""The service as a user starts it: a process, a model, a first answer, a signal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vermilion
from tests.models.hub_server import Hub, Repository, serving

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


def _child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else 0


@pytest.mark.parametrize("first", [False, True], ids=["a process", "the first process of a container"])
def test_a_signal_ends_a_download_at_once(first: bool, tmp_path: Path) -> None:
    container = ["unshare", "--user", "--pid", "--fork"] if first else []
    if first and subprocess.run([*container, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody make process namespaces")
    files = {"config.json": b'{"model_type": "llama"}', "model.safetensors": bytes(100_000)}
    with serving(Hub({"lab/tiny": Repository({**files, "tokenizer.json": b"{}"})}, stalled=True)) as hub:
        own = {"HF_ENDPOINT": hub.url, "VERMILION_HOME": str(tmp_path)}
        command = [*container, sys.executable, "-c", MAIN, "serve", "lab/tiny", "--port", "0"]
        process = subprocess.Popen(command, env={**ENVIRONMENT, **own}, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 60
            while not hub.ranges and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.05)
            assert hub.ranges, process.poll()
            os.kill(_child_of(process.pid) if first else process.pid, signal.SIGTERM)
            process.wait(10)
        finally:
            if first and process.poll() is None:
                os.kill(_child_of(process.pid), signal.SIGKILL)
            process.kill()
            log = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM, log
    assert "Traceback" not in log
