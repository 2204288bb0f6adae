"""Agents for the terminal that edit a file through a service with the scripted engine: Claude Code, Codex,
Copilot CLI, Qwen Code, pi.

`vermilion connect` configures each in a home of its own, trimmed for a small context. What is proven is the
way from the request to the changed file and back: prompts, tools, calls, results.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.conftest import Proven
from clients.editing import asking, changed, connect
from clients.installed import environment, installed, node_version, run
from clients.running import Running
from clients.scripted import ANSWER, scripted

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]
_TIMEOUT_S = 300.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with scripted(tmp_path_factory.mktemp("scripted") / "log") as service:
        yield service


def test_claude_code_edits_a_file(service: Running, home: Path, notes: Path, proven: Proven) -> None:
    program = installed("node/node_modules/.bin/claude")
    connect("claude", service, home, "--write")
    num_before = len(service.requests())
    words = asking("Edit", file_path=str(notes), old_string="Helo", new_string="Hello")
    # An @file counts as read, and only what was read may be edited.
    command = [program, "-p", "--permission-mode", "acceptEdits", f"@notes.txt {words}"]
    ran = run(command, environment(home), notes.parent, _TIMEOUT_S)
    changed(notes, service, num_before, ran, "/v1/messages")
    what = "an existing file edited by an Edit call, simple mode"
    proven("Claude Code", node_version("@anthropic-ai/claude-code"), what)


def test_claude_code_compacts_a_conversation_that_is_too_long(
    service: Running, home: Path, notes: Path, proven: Proven
) -> None:
    program = installed("node/node_modules/.bin/claude")
    connect("claude", service, home, "--write")
    num_before = len(service.requests())
    words = f"Remember: {'lorem ipsum ' * 450}"
    for more in ([], ["-c"], ["-c"]):
        ran = run([program, "-p", *more, words], environment(home), notes.parent, _TIMEOUT_S)
        assert (ran.status, ran.output.strip()) == (0, ANSWER), ran.errors
    asked = service.requests()[num_before:]
    # The third does not fit, which the refusal's words say; what is then asked does.
    assert asked.count("POST /v1/messages 200") >= 4
    assert "POST /v1/messages 400" in asked
    assert asked[-1] == "POST /v1/messages 200"
    what = "a conversation that no longer fits is compacted and goes on"
    proven("Claude Code", node_version("@anthropic-ai/claude-code"), what)


def test_codex_edits_a_file(service: Running, home: Path, notes: Path, proven: Proven) -> None:
    program = installed("node/node_modules/.bin/codex")
    connect("codex", service, home, "--write")
    num_before = len(service.requests())
    words = asking("exec_command", cmd=f"sed -i s/Helo/Hello/ {notes.name}")
    # What it may do is left to this test: its own sandbox needs rights that a container seldom has.
    free = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    command = [program, "exec", "--profile", "vermilion", *free, words]
    ran = run(command, environment(home), notes.parent, _TIMEOUT_S)
    changed(notes, service, num_before, ran, "/v1/responses")
    proven("Codex", node_version("@openai/codex"), "an existing file edited by an exec_command call")


@pytest.mark.parametrize(
    ("client", "title", "package", "arguments", "command"),
    [
        (
            "qwen",
            "Qwen Code",
            "@qwen-code/qwen-code",
            {"file_path": "{notes}", "old_string": "Helo", "new_string": "Hello"},
            ["--approval-mode", "yolo", "-p", "@notes.txt {words}"],
        ),
        (
            "pi",
            "pi",
            "@mariozechner/pi-coding-agent",
            {"path": "notes.txt", "edits": [{"oldText": "Helo", "newText": "Hello"}]},
            ["-p", "{words}"],
        ),
        (
            "copilot",
            "Copilot CLI",
            "@github/copilot",
            {"path": "{notes}", "old_str": "Helo", "new_str": "Hello"},
            ["--allow-all-tools", "-p", "{words}"],
        ),
    ],
    ids=["qwen", "pi", "copilot"],
)
def test_an_agent_that_speaks_chat_edits_a_file(
    client: str,
    title: str,
    package: str,
    arguments: dict[str, object],
    command: list[str],
    service: Running,
    home: Path,
    notes: Path,
    proven: Proven,
) -> None:
    program = installed(f"node/node_modules/.bin/{client}")
    env, extra = environment(home), []
    if client == "copilot":
        lines = [line.strip() for line in connect(client, service, home).output.splitlines()]
        env |= dict(
            line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export ")
        )
        extra = shlex.split(next(line for line in lines if line.startswith("copilot ")))[1:]
    else:
        connect(client, service, home, "--write")
    num_before = len(service.requests())
    words = asking("edit", **arguments).replace("{notes}", str(notes))
    told = [word.replace("{words}", words) for word in command]
    ran = run([program, *extra, *told], env, notes.parent, _TIMEOUT_S)
    changed(notes, service, num_before, ran)
    proven(title, node_version(package), "an existing file edited by an edit call")
