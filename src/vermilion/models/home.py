"""Where models lie on this disk, and how processes that share the folder write there."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import platformdirs


def home() -> Path:
    """The folder of pulled models: VERMILION_HOME, else the user's cache folder."""
    given = os.environ.get("VERMILION_HOME")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("vermilion"))


def write_whole(path: Path, content: str) -> None:
    """All or nothing, also when two processes write the same file."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(content, encoding="utf-8")
    draft.replace(path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file's lock; the system drops it with the process, however that ends."""
    with path.open("a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                with contextlib.suppress(OSError):  # it gives up after ten seconds
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
