"""Source distributions: fetched by pip, read in memory; nothing is unpacked or run."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from vermilion.errors import ConfigError

_MAX_BYTES = 1 << 20
"""Larger files are not read: they are data, or generated."""
_MAX_FILES = 200_000
_SUFFIXES = (".tar.gz", ".tgz", ".zip", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True, slots=True)
class Sdist:
    """An archive on disk."""

    path: Path
    sha256: str


def fetch_sdist(name: str, version: str, folder: Path) -> Sdist:
    """The sdist of `name` in `folder`, by `pip download` where it is not there yet.

    No wheel is built, but pip asks an sdist's build backend for metadata (https://github.com/pypa/pip/issues/1884).
    Raises ConfigError with pip's last words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if found := _found(name, version, folder):
        return found
    with TemporaryDirectory(dir=folder) as part:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name,
            "--dest", part, f"{name}=={version}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise ConfigError(f"packages: pip could not download {name}=={version}: {said[-1]}")
        for file in Path(part).iterdir():
            os.replace(file, folder / file.name)
    found = _found(name, version, folder)
    if found is None:
        raise ConfigError(f"packages: pip fetched no source distribution of {name}=={version}.")
    return found


def _found(name: str, version: str, folder: Path) -> Sdist | None:
    def plain(text: str) -> str:
        return text.lower().replace("-", "_").replace(".", "_")

    for path in sorted(folder.iterdir()):
        suffix = next((end for end in _SUFFIXES if path.name.endswith(end)), "")
        if suffix and plain(path.name.removesuffix(suffix)) == plain(f"{name}_{version}"):
            return Sdist(path, sha256_of(path))
    return None


def sha256_of(file: Path) -> str:
    """Hexadecimal; raises ConfigError where the file cannot be read."""
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error}.") from None


def read_texts(sdist: Path) -> Iterator[tuple[PurePosixPath, str]]:
    """(path below the archive's top folder, text) of its small UTF-8 files, in the archive's order.

    Nothing is written to disk. Raises ConfigError for an archive with a path that leads out of it: such a
    file was made to harm, and nothing of it is used.
    """
    num_files = 0
    for name, content in _members(sdist):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or (path.parts and ":" in path.parts[0]):
            raise ConfigError(f"{sdist}: {name!r} leads out of the archive; the file is refused.")
        num_files += 1
        if num_files > _MAX_FILES:
            raise ConfigError(f"{sdist}: more than {_MAX_FILES} files; the file is refused.")
        if content is None:
            continue
        try:
            yield PurePosixPath(*path.parts[1:]), content.decode("utf-8")
        except UnicodeDecodeError:
            continue


def _members(sdist: Path) -> Iterator[tuple[str, bytes | None]]:
    """(name, content) of every member; None for what is no small regular file, links among them."""
    try:
        if sdist.name.endswith(".zip"):
            with zipfile.ZipFile(sdist) as archive:
                for entry in archive.infolist():
                    # Archives state sizes; reading stops there, whatever was compressed.
                    small = not entry.is_dir() and entry.file_size <= _MAX_BYTES
                    yield entry.filename, archive.read(entry) if small else None
            return
        with tarfile.open(sdist) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() and member.size <= _MAX_BYTES else None
                yield member.name, file.read() if file else None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ConfigError(f"{sdist}: not a sound archive: {error}.") from None
