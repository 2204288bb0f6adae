"""The usable texts of one project: its archive (or the standard library) read, licensed and filtered."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from vermilion.data.archives import Sdist, read_texts
from vermilion.data.cleaning import (
    Decontamination,
    docstrings,
    is_wanted_path,
    refusal_of_text,
    without_header,
)
from vermilion.data.languages import suffixes_of
from vermilion.data.licences import (
    UNKNOWN,
    is_allowed,
    is_licence_file,
    licence_of_file,
    licence_of_metadata,
    licence_of_text,
)
from vermilion.data.prompt_templates import SKIPPED, standard_library
from vermilion.errors import ConfigError

Kind = Literal["code", "docs"]
READER_VERSION = 3
"""Raise it when reading or filtering changes, so that what was read before is read again."""
_DOC_FOLDERS = frozenset({"doc", "docs"})
_TOP = PurePosixPath(".")
_POINTER = 500
"""Characters up to which a text that is no known licence is none at all."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One text of a project."""

    kind: Kind
    path: str
    """In the archive; for docstrings the path of their file."""
    licence: str
    text: str


@dataclass(frozen=True, slots=True)
class Project:
    """What was found in a project."""

    name: str
    version: str
    sha256: str
    """Of the archive; of all its texts for the standard library."""
    licence: str
    pieces: tuple[Piece, ...]
    refused: dict[str, int]
    """Texts left out, by reason."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Which texts are wanted."""

    allowed: Sequence[str]
    """Licences, by SPDX name."""
    evaluations: Decontamination
    languages: Sequence[str] = ("python",)


def read_sdist(label: tuple[str, str], sdist: Sdist, rules: Rules) -> Project:
    """`label`: name and version. Raises ConfigError for a licence not allowed and for an unsound archive."""
    texts = list(read_texts(sdist.path))
    metadata = next((text for path, text in texts if path == PurePosixPath("PKG-INFO")), "")
    own = [text for path, text in texts if is_licence_file(path) and path.parent == _TOP]
    licence = licence_of_metadata(metadata, own)
    # What the metadata says does not count against a licence text that says otherwise.
    stricter = {licence_of_text(text) for text in own} - {UNKNOWN, *rules.allowed}
    licence = " AND ".join([licence, *sorted(stricter)])
    if not is_allowed(licence, rules.allowed):
        raise ConfigError(
            f"packages: {' '.join(label)} is under {licence}, which is not allowed; allowed: "
            f"{', '.join(rules.allowed)}. Leave it out, or add the licence to `allowed`."
        )
    return _read(label, sdist.sha256, licence, texts, rules)


def read_standard_library(rules: Rules) -> Project:
    """The running interpreter's own modules, under the PSF's licence."""
    root = standard_library()
    texts = []
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        path = PurePosixPath(file.relative_to(root).as_posix())
        if SKIPPED & set(path.parts):
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        texts.append((path, text))
        digest.update(f"{path}\0{text}\0".encode())
    label = ("python", platform.python_version())
    return _read(label, digest.hexdigest(), "PSF-2.0", texts, rules)


def _read(
    label: tuple[str, str],
    sha256: str,
    licence: str,
    texts: Iterable[tuple[PurePosixPath, str]],
    rules: Rules,
) -> Project:
    texts = list(texts)
    folders: dict[PurePosixPath, str] = {}
    for path, text in texts:
        if is_licence_file(path) and path.parent != _TOP:
            found = licence_of_text(text)
            # docs/license.rst and its like only point at the project's own licence.
            if found != UNKNOWN or len(text) > _POINTER:
                folders[path.parent] = found
    refused: Counter[str] = Counter()
    pieces: list[Piece] = []
    suffixes = suffixes_of(rules.languages)
    for path, text in texts:
        kind = _kind(path, suffixes)
        if kind is None:
            continue
        stated = licence_of_file(path, text, licence, folders)
        if not is_allowed(stated, rules.allowed):
            refused["licence"] += 1
        elif not is_wanted_path(path):
            refused["path"] += 1
        else:
            pieces += _pieces(Piece(kind, str(path), stated, text), rules.evaluations, refused)
    return Project(*label, sha256, licence, tuple(pieces), dict(sorted(refused.items())))


def _kind(path: PurePosixPath, suffixes: frozenset[str]) -> Kind | None:
    if path.suffix in suffixes:
        return "code"
    in_docs = bool(_DOC_FOLDERS & {part.lower() for part in path.parts[:-1]})
    prose = path.suffix in (".rst", ".md") or (path.suffix == ".txt" and in_docs)
    return "docs" if prose and (in_docs or path.name.lower().startswith("readme")) else None


def _pieces(whole: Piece, evaluations: Decontamination, refused: Counter[str]) -> list[Piece]:
    """The text without its licence header, and of code its docstrings as prose."""
    candidates = [whole]
    if whole.kind == "code":
        suffix = PurePosixPath(whole.path).suffix
        candidates = [Piece("code", whole.path, whole.licence, without_header(whole.text, suffix))]
        prose = "\n\n".join(docstrings(whole.text))
        if prose:
            candidates.append(Piece("docs", whole.path, whole.licence, prose))
    kept = []
    for piece in candidates:
        reason = refusal_of_text(piece.text, piece.kind == "code") or (
            "evaluation" if evaluations.hits(piece.text) else ""
        )
        if reason:
            refused[reason] += 1
        else:
            kept.append(piece)
    return kept


def save(project: Project, file: Path, key: str) -> None:
    """Keep what was read, so that an interrupted build resumes after it."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps({"key": key, **asdict(project)}), encoding="utf-8")
    os.replace(part, file)


def saved(file: Path, key: str) -> Project | None:
    """What `save` kept under the same `key`; None where there is nothing, or another key's."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if content.pop("key", None) != key:
        return None
    content["pieces"] = tuple(Piece(**piece) for piece in content["pieces"])
    return Project(**content)
