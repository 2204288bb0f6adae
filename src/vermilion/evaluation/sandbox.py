"""Runs a program that a model wrote, isolated from this machine.

Two stages, both in `confine.py`: the first takes the process out of this machine's network, files, processes
and users as far as the system allows it, the second limits what is left and runs the program. How far that
goes is found out once and said in every outcome:

namespaces  no network device, a file system of the interpreter (read-only) and an empty scratch folder, no
            other process in sight, an unprivileged user, a seccomp filter
filter      the seccomp filter alone: no sockets, no processes, no other signals; files by the audit hook
hook        the audit hook of the interpreter alone, which stops everything that plain Python can do, but is
            no wall against native code

The audit hook, the limits of time, memory, file size and open files, and the empty environment are there in
every case.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Status = Literal["passed", "failed", "timeout"]
ISOLATIONS = ("namespaces", "filter", "hook")
_STAGES = Path(__file__).with_name("confine.py")
_SHOWN = 400
"""Last characters of what a failed program wrote to stderr."""


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What a program may use."""

    wall_s: float = 10.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20
    open_files: int = 32


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended."""

    status: Status
    detail: str
    isolation: str


def run(program: str, limits: SandboxLimits = SandboxLimits(), isolation: str | None = None) -> Outcome:
    """`passed` where the program ran to its end without an exception; leaving early by any exit is a failure.

    `isolation`: one of ISOLATIONS instead of the best this system allows.
    """
    chosen = isolation or best_isolation()
    token = secrets.token_hex(16)
    scratch = Path(tempfile.mkdtemp(prefix="vermilion-"))
    arguments = [
        chosen, str(scratch), token, str(limits.wall_s), str(limits.memory_bytes), str(limits.file_bytes),
        str(limits.open_files),
    ]  # fmt: skip
    try:
        return _outcome(arguments, program, token, limits, chosen)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _outcome(
    arguments: list[str], program: str, token: str, limits: SandboxLimits, isolation: str
) -> Outcome:
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complaint:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_STAGES), *arguments],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=complaint,
            env={},
            start_new_session=True,
        )
        try:
            process.communicate(program.encode(), timeout=limits.wall_s)
        except subprocess.TimeoutExpired:
            return Outcome("timeout", f"longer than {limits.wall_s:g} s", isolation)
        finally:
            _end(process)
        said.seek(0)
        complaint.seek(max(0, complaint.seek(0, os.SEEK_END) - _SHOWN))
        detail = complaint.read().decode(errors="replace").strip()
        passed = process.returncode == 0 and said.read(1 << 10).decode(errors="replace") == token
    return Outcome("passed" if passed else "failed", "" if passed else detail, isolation)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started; with namespaces the whole of them falls with their first."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@cache
def best_isolation() -> str:
    """The first of ISOLATIONS under which a program runs here at all."""
    for isolation in ISOLATIONS[:-1]:
        if sys.platform == "linux" and run("pass", isolation=isolation).status == "passed":
            return isolation
    return ISOLATIONS[-1]
