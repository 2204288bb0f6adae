"""`vermilion train` as a process of its own: it ends, saving, when it is told to or when we are gone."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

_CHILD = """
import os, signal, sys, threading

def stop_when_left_alone():
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=stop_when_left_alone, daemon=True).start()
from vermilion.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""Our end of its standard input closes even when we are killed; training then saves and ends by itself."""
_NICE = 10
_LEAVE_S = 60.0
"""What saving may take before the process is killed."""
_LOOK_S = 0.2


class TrainingProcess:
    """One run of the command."""

    def __init__(self, process: asyncio.subprocess.Process, errors: Path) -> None:
        self._process = process
        self._errors = errors

    @classmethod
    async def start(cls, arguments: list[str], folder: Path) -> TrainingProcess:
        """`arguments` of the `vermilion` command; its standard error goes to a file in `folder`."""
        errors = folder / "stderr.txt"
        with errors.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                _CHILD,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=file,
                # Ctrl-C is for the service, which passes it on in its own way.
                start_new_session=True,
            )
        with suppress(OSError, AttributeError):
            # Answers come first.
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
        return cls(process, errors)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.returncode

    async def wait(self, timeout_s: float) -> None:
        """Until it ends, or so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._process.wait()

    async def stop(self) -> None:
        """Have it save and end."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self.wait(_LEAVE_S)
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def said(self) -> str:
        """The last lines of its standard error."""
        return self._errors.read_text(encoding="utf-8", errors="replace").strip()[-4000:]


async def gone(pid: int | None) -> None:
    """Until the process of an earlier service has ended: it may still be saving."""
    waited_s = 0.0
    while pid and waited_s < _LEAVE_S and _lives(pid):
        await asyncio.sleep(_LOOK_S)
        waited_s += _LOOK_S


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # the number is another user's by now
    return True
