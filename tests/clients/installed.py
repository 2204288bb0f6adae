"""The clients' own programs, as scripts/test-clients installs them below .clients/."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
FOLDER = _HERE.parents[1] / ".clients"
PROGRAMS = _HERE / "programs"
_NOWHERE = "http://127.0.0.1:9"


@dataclass(frozen=True, slots=True)
class Ran:
    """What a program said and how it ended."""

    output: str
    errors: str
    status: int


def installed(path: str) -> Path:
    """A program below .clients/; the test is skipped without it."""
    program = FOLDER / path
    if not program.exists():
        pytest.skip(f"{path} is not installed; scripts/test-clients installs it where it can")
    return program


def node_version(package: str) -> str:
    version: str = json.loads((FOLDER / "node/node_modules" / package / "package.json").read_text())[
        "version"
    ]
    return version


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """A user's environment with a home of its own, from which nothing but this computer can be reached."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TERM": "dumb",
        "LANG": "C.UTF-8",
        "HTTPS_PROXY": _NOWHERE,
        "HTTP_PROXY": _NOWHERE,
        "NO_PROXY": "127.0.0.1,localhost",
        **(more or {}),
    }


def run(command: Sequence[str | Path], env: Mapping[str, str], folder: Path, timeout_s: float = 500.0) -> Ran:
    """Runs a program to its end in `folder`, without a terminal or anybody to answer it."""
    done = subprocess.run(
        [str(word) for word in command],
        env=dict(env),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )
    return Ran(done.stdout, done.stderr, done.returncode)
