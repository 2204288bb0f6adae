"""Agents that really change a file: Continue's, Cline's, Kilo Code's and OpenCode's own programs, headless.

`vermilion connect` configures each in a home of its own. The service demands a call of the tool that edits,
since the embedded model does not call tools by itself; the request says what to call it with, since a model
of this size would not find that out. What is proven is the way from the request to the changed file.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from clients.conftest import Proven
from clients.editing import AFTER, BEFORE, asking, changed, connect
from clients.installed import environment, installed, node_version, run
from clients.running import Running, running

pytestmark = [pytest.mark.model, pytest.mark.clients, pytest.mark.timeout(1200)]
_TIMEOUT_S = 500.0


@pytest.fixture(scope="module")
def demanding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service that demands a call of whichever tool an agent edits with."""
    settings = ['serve.demanded_tools=["editor", "Write", "edit"]']
    with running(tmp_path_factory.mktemp("demanding") / "log", settings) as service:
        yield service


def test_continues_agent_writes_a_file(demanding: Running, home: Path, notes: Path, proven: Proven) -> None:
    program = installed("node/node_modules/.bin/cn")
    connect("continue", demanding, home, "--write")
    num_before = len(demanding.requests())
    words = asking("Write", filepath="notes.txt", content=AFTER)
    ran = run([program, "-p", "--auto", words], environment(home), notes.parent, _TIMEOUT_S)
    changed(notes, demanding, num_before, ran)
    proven(
        "cn (Continue)", node_version("@continuedev/cli"), "an existing file rewritten by a demanded Write"
    )


def test_clines_agent_edits_a_file(demanding: Running, home: Path, notes: Path, proven: Proven) -> None:
    program = installed("node/node_modules/.bin/cline")
    told = connect("cline", demanding, home).output
    (line,) = (line.strip() for line in told.splitlines() if line.strip().startswith("cline auth"))
    env = environment(home)
    try:
        assert run([program, *shlex.split(line)[1:]], env, notes.parent).status == 0
        num_before = len(demanding.requests())
        words = asking("the editor", path="notes.txt", old_text="Helo", new_text="Hello")
        ran = run([program, words], env, notes.parent, _TIMEOUT_S)
        changed(notes, demanding, num_before, ran)
    finally:
        # It leaves a process of its own behind.
        with suppress(FileNotFoundError, ProcessLookupError):
            state = json.loads((home / ".cline/data/locks/hub/production.json").read_text())
            os.kill(state["pid"], signal.SIGTERM)
    proven("Cline", node_version("cline"), "an existing file edited by a demanded editor call")


@pytest.mark.parametrize(
    ("client", "title", "package"),
    [("kilo", "Kilo Code", "@kilocode/cli"), ("opencode", "OpenCode", "opencode-ai")],
)
def test_an_agent_with_a_small_prompt_edits_a_file(
    client: str, title: str, package: str, demanding: Running, home: Path, notes: Path, proven: Proven
) -> None:
    program = installed(f"node/node_modules/.bin/{client}")
    connect(client, demanding, home, "--write")
    num_before = len(demanding.requests())
    words = asking("edit", filePath="notes.txt", oldString="Helo", newString="Hello")
    # An attached file counts as read, and only what was read may be edited.
    command = [program, "run", "--auto", "-f", "notes.txt", "--", words]
    ran = run(command, environment(home), notes.parent, _TIMEOUT_S)
    changed(notes, demanding, num_before, ran)
    proven(title, node_version(package), "an existing file edited by a demanded edit call, small agent")


def test_aider_rewrites_a_file_and_answers_a_question(
    demanding: Running, home: Path, notes: Path, proven: Proven
) -> None:
    """It calls no tools: the grammar in its configuration holds the answer to a file in a fence."""
    program = installed("aider/bin/aider")
    connect("aider", demanding, home, "--write")
    num_before = len(demanding.requests())
    code = notes.with_name("add.py")
    code.write_text("def add(a, b):\n    return a - b\n")
    switches = ["--no-git", "--yes-always", "--no-check-update", "--analytics-disable", "--no-pretty"]
    env = environment(home, {"LITELLM_LOCAL_MODEL_COST_MAP": "True"})
    words = "Fix it: the function add must return a + b."
    ran = run([program, *switches, "--message", words, code], env, notes.parent, _TIMEOUT_S)
    assert code.read_text() == "def add(a, b):\n    return a + b\n", f"{ran.output}\n{ran.errors}"
    question = ["--model", "openai/mercury", "--chat-mode", "ask", "--message", "Say hello."]
    told = run([program, *switches, *question, notes], env, notes.parent, _TIMEOUT_S)
    assert (told.status, notes.read_text()) == (0, BEFORE), told.errors
    assert demanding.requests()[num_before:].count("POST /v1/chat/completions 200") == 2
    version = run([program, "--version"], env, notes.parent).output.split()[-1]
    proven(
        "aider", version, "an existing file rewritten in its own words under a grammar; a question answered"
    )
