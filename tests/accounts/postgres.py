"""A PostgreSQL of our own for the tests: Debian's programs, a folder that goes away, no password."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_USER = "postgres"
"""Whom the server runs as where the tests run as root, which PostgreSQL refuses."""


def programs() -> Path | None:
    """The folder of initdb and pg_ctl; the newest Debian has, else that of the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: path.parts[-3])
    initdb = str(found[-1]) if found else shutil.which("initdb")
    return Path(initdb).parent if initdb else None


def reason_against() -> str | None:
    """Why no server can be started here; None where it can."""
    if programs() is None:
        return "PostgreSQL is not installed (apt-get install postgresql)"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(_USER)
        except KeyError:
            return f"PostgreSQL does not run as root, and there is no user {_USER}"
    return None


@contextmanager
def server() -> Iterator[str]:
    """The address of an empty database on a server that lives as long as the context."""
    folder = tempfile.mkdtemp(prefix="vermilion-postgres-", dir="/tmp")
    owner = {}
    if os.geteuid() == 0:
        entry = pwd.getpwnam(_USER)
        os.chown(folder, entry.pw_uid, entry.pw_gid)
        owner = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    data, found = f"{folder}/data", programs()
    assert found is not None

    def call(program: str, *arguments: str) -> None:
        command = [str(found / program), *arguments]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        subprocess.run(command, check=True, timeout=120, cwd=folder, **quiet, **owner)

    try:
        call("initdb", "-D", data, "-U", "vermilion", "-A", "trust", "-E", "UTF8", "--no-sync")
        listening = f"-c fsync=off -c listen_addresses= -c unix_socket_directories={folder}"
        call("pg_ctl", "-D", data, "-w", "-l", f"{folder}/log", "-o", listening, "start")
        try:
            yield f"postgresql://vermilion@/postgres?host={folder}"
        finally:
            call("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
