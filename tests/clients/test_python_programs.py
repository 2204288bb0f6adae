"""LiteLLM, and `llm` with its plugin for Inception, in an environment of their own."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.conftest import Proven
from clients.installed import PROGRAMS, environment, installed, run
from clients.running import MODEL, Running, running
from clients.tunnel import HOST, tunnel

pytestmark = [pytest.mark.model, pytest.mark.clients, pytest.mark.timeout(1200)]
QUESTION = "What is the capital of France? Answer in one short sentence."
ANSWER = "The capital of France is Paris."


def test_litellm_speaks_to_the_service_as_to_inception(
    service: Running, tmp_path: Path, proven: Proven
) -> None:
    python = installed("python/bin/python")
    where = {"INCEPTION_API_BASE": service.v1, "INCEPTION_API_KEY": "unused"}
    env = environment(tmp_path, {**where, "LITELLM_LOCAL_MODEL_COST_MAP": "True"})
    ran = run([python, PROGRAMS / "ask_litellm.py", MODEL], env, tmp_path)
    assert ran.status == 0, ran.errors
    found = json.loads(ran.output.splitlines()[-1])
    assert found["answer"] == found["streamed"] == ANSWER
    assert "city" in found["shaped"]
    assert found["call"]["level"] in (1, 2, 3)
    assert found["filled"]
    assert "POST /v1/fim/completions 200" in service.requests()
    proven("litellm, inception/", found["version"], "chat, stream, json_schema, required tool")
    proven("litellm, text-completion-inception/", found["version"], "a gap through /v1/fim/completions")


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of `llm`: the plugin knows one address, and a proxy leads it to a service of ours."""
    installed("python/bin/llm")
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, for a certificate of the proxy")
    settings = [f'serve.allowed_hosts=["{HOST}"]']
    with running(tmp_path / "log", settings) as service, tunnel(service.url, tmp_path) as way:
        keys = {"LLM_INCEPTION_KEY": "unused", "LLM_USER_PATH": str(tmp_path / "llm")}
        (tmp_path / "llm").mkdir()
        yield environment(tmp_path, {**keys, **way, "TERM": "xterm-256color"})


def test_llms_plugin_shows_the_canvas_on_a_terminal(
    llm: dict[str, str], tmp_path: Path, proven: Proven
) -> None:
    program = installed("python/bin/llm")
    assert f"inception/{MODEL}" in run([program, "models"], llm, tmp_path).output
    ask = [program, "-m", f"inception/{MODEL}", QUESTION, "-o", "max_tokens", "24"]
    shown = on_a_terminal([str(word) for word in ask], llm, tmp_path)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert ANSWER in plain
    # The plugin draws ten frames a second over each other: the cursor is led back to what they replace.
    assert re.search(r"\x1b\[2K|\x1b\[1A", shown)
    whole = run([*ask, "-o", "no_diffusion", "true", "--no-stream"], llm, tmp_path)
    assert whole.output.strip() == ANSWER
    version = run([program, "plugins"], llm, tmp_path).output
    version = next(one["version"] for one in json.loads(version) if one["name"] == "llm-inception")
    proven("llm + llm-inception", version, "models, the canvas drawn on a terminal, a whole answer")


def on_a_terminal(command: list[str], env: dict[str, str], folder: Path) -> str:
    """What a program writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, env=env, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while select.select([ours], [], [], 300)[0]:
            try:
                content = os.read(ours, 65536)
            except OSError:
                break
            if not content:
                break
            shown += content
    finally:
        os.close(ours)
        if process.poll() is None:
            process.wait(30)
    return shown.decode(errors="replace")
