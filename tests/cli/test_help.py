"""What `--help` says of every command, and what a bare installation can do."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer.main

from tests.cli.scripted import vermilion
from vermilion import __version__
from vermilion.cli import app

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "vermilion"


def commands(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(app)))


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def test_help_begins_with_use_and_ends_with_training(capsys: pytest.CaptureFixture[str]) -> None:
    vermilion("--help")
    listed = capsys.readouterr().out.partition("Commands:")[2].splitlines()
    named = [line.split()[0] for line in listed if line]
    assert named[:3] == ["run", "chat", "complete"] and named[-2:] == ["convert", "train"]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_says_every_word_of_its_texts(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert vermilion(*path, "--help") == 0
    said = squeezed(capsys.readouterr().out)
    command = COMMANDS[path]
    texts = [command.help, *(getattr(parameter, "help", None) for parameter in command.params)]
    assert command.help
    for text in texts:
        assert text is None or squeezed(text) in said
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{parameter.name} is not explained"
    for inner in getattr(command, "commands", {}).values():
        # A first sentence that does not fit the list is cut, and ends in dots.
        assert squeezed((inner.help or inner.callback.__doc__).split(".")[0]) in said


def test_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert vermilion("--version") == 0
    assert capsys.readouterr().out == f"vermilion {__version__}\n"


def test_serving_needs_no_extra() -> None:
    core = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    wanted = {re.split(r"[^\w-]", line)[0].lower() for line in core}
    folders = ("accounts", "decoding", "engine", "models", "serving")
    sources = [path for folder in folders for path in (PACKAGE / folder).rglob("*.py")]
    sources += [PACKAGE / "cli" / name for name in ("launch.py", "answering.py", "conversation.py")]
    imported = {name for path in sources for name in modules(ast.parse(path.read_bytes()))}
    others = imported - set(sys.stdlib_module_names) - {"vermilion"}
    assert len(others) > 10
    brought = {"starlette": "fastapi", "anyio": "fastapi", "pydantic_core": "pydantic"}
    missing = {name for name in others if brought.get(name, name).replace("_", "-") not in wanted}
    assert not missing


def modules(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0]
