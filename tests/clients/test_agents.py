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
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from clients.conftest import Proven
from clients.installed import Ran, environment, installed, node_version, run
from clients.running import Running, running

pytestmark = [pytest.mark.model, pytest.mark.clients, pytest.mark.timeout(1200)]
BEFORE, AFTER = "Helo, world\n", "Hello, world"
_COMMAND = [sys.executable, "-c", "from vermilion.cli import main; raise SystemExit(main())"]
_TIMEOUT_S = 500.0


@pytest.fixture(scope="module")
def demanding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service that demands a call of whichever tool an agent edits with."""
    settings = ['serve.demanded_tools=["editor", "Write", "edit"]']
    with running(tmp_path_factory.mktemp("demanding") / "log", settings) as service:
        yield service


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """The file to be changed, in a folder of its own."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    notes = folder / "notes.txt"
    notes.write_text(BEFORE)
    return notes


def connect(client: str, service: Running, home: Path, *options: str) -> Ran:
    """What `vermilion connect` says, for a user whose home is `home`."""
    env = environment(home, {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)})
    ran = run([*_COMMAND, "connect", client, "--url", service.url, *options], env, home)
    assert ran.status == 0, ran.errors
    assert "FAILED" not in ran.errors
    return ran


def changed(notes: Path, service: Running, num_before: int, ran: Ran) -> None:
    """Asserts that the file is what was asked for, and that the service was asked for it."""
    said = f"{ran.output}\n{ran.errors}\n{service.requests()[num_before:]}"
    assert notes.read_text().rstrip("\n") == AFTER, said
    asked = service.requests()[num_before:]
    # The call, and then the words about its result.
    assert asked.count("POST /v1/chat/completions 200") >= 2, said
    # When an agent is done it hangs up on what it no longer needs, such as a title for the session.
    assert all(request.endswith((" 200", " 499")) for request in asked), said


def asking(tool: str, **arguments: str) -> str:
    return f"Call {tool} with {json.dumps(arguments)}"


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
