"""Models of the hub on this disk: their names, their folders, and what was pulled into them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from vermilion.errors import ModelFileError
from vermilion.models.home import home, locked, write_whole
from vermilion.models.published_models import published_models
from vermilion.text import read_json

SOURCE_FILE = "source.json"
_NAME = re.compile(
    r"(?P<owner>[\w-][\w.-]*)/(?P<name>[\w-][\w.-]*)(?:@(?P<revision>[\w./-]+))?(?::(?P<part>[\w.-]+))?"
)


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model by where it is published."""

    name: str
    """As the user calls it: of the catalogue, or `owner/name[@revision][:part]`."""
    repository: str
    revision: str = ""
    """A commit, branch or tag; empty for the newest."""
    part: str = ""
    """Which of several GGUF files: a part of its name, such as Q4_K_M."""

    @property
    def folder(self) -> Path:
        plain = self.name if "/" not in self.name else self.name.replace("/", "--")
        return home() / "models" / "hub" / plain.replace(":", "+")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as the hub describes it."""

    name: str
    size_bytes: int
    sha256: str = ""
    """Of a large file; others have `git_sha1`, which git gives every file."""
    git_sha1: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """What a folder was pulled from; its source.json."""

    name: str
    repository: str
    commit: str
    files: tuple[HubFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def write(self, folder: Path) -> None:
        write_whole(folder / SOURCE_FILE, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> Source | None:
        """None where nothing was pulled. Raises ModelFileError for a file that makes no sense."""
        found = read_json(folder / SOURCE_FILE)
        if not found:
            return None
        try:
            files = tuple(HubFile(**file) for file in found.pop("files"))
            return cls(files=files, **found)
        except (TypeError, KeyError) as error:
            raise ModelFileError(f"{folder / SOURCE_FILE} is damaged ({error}); pull again.") from None


def named(name: str) -> HubModel | None:
    """What a name of the catalogue or of a repository means; None for other names."""
    row = published_models().get(name)
    if row is not None:
        return HubModel(name, row.repository, row.revision)
    found = _NAME.fullmatch(name)
    if found is None or ".." in name:
        return None
    return HubModel(name, f"{found['owner']}/{found['name']}", found["revision"] or "", found["part"] or "")


def pulled(model: HubModel) -> Source | None:
    """What lies there, where all of it does; cheap: sizes are compared, not contents."""
    source = Source.read(model.folder)
    if source is None:
        return None
    whole = all(
        (path := model.folder / file.name).is_file() and path.stat().st_size == file.size_bytes
        for file in source.files
    )
    return source if whole else None


def all_pulled() -> Mapping[str, Source]:
    """Everything that was pulled from the hub, by name."""
    return {source.name: source for source in _sources() if pulled(HubModel(source.name, source.repository))}


def _sources() -> Iterator[Source]:
    for path in sorted((home() / "models" / "hub").glob(f"*/{SOURCE_FILE}")):
        source = Source.read(path.parent)
        if source is not None:
            yield source


def remove(model: HubModel) -> None:
    """Delete what was pulled, and what an interrupted pull left."""
    if model.folder.exists():
        with locked(model.folder.with_suffix(".lock")):
            shutil.rmtree(model.folder)
