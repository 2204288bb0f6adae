"""Files, jobs and batches on disk. Each is a folder with a record that is written whole or not at all.

FOLDER/file/file-4f2a/     record.json, content
FOLDER/job/ftjob-4f2a/     record.json, training.jsonl, events.jsonl, run/ (what `vermilion train` writes)
FOLDER/batch/batch_4f2a/   record.json, input.jsonl, output.jsonl, errors.jsonl
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from vermilion.errors import ConfigError, VermilionError

Kind = Literal["file", "job", "batch"]
_PREFIXES: dict[Kind, str] = {"file": "file-", "job": "ftjob-", "batch": "batch_"}
_RECORD = "record.json"


class NotHere(VermilionError):
    """No such file, job or batch, or it is somebody else's."""

    status = 404
    kind = "invalid_request_error"
    code = "not_found"
    param = "id"

    def __init__(self, kind: Kind, id: str) -> None:
        super().__init__(f"There is no {kind} {id[:100]!r}.")


@dataclass(slots=True)
class Record:
    """One file, job or batch."""

    id: str
    kind: Kind
    owner: str
    """The organisation it belongs to; empty on a service without accounts."""
    body: dict[str, Any]
    """What clients see of it."""
    own: dict[str, Any] = field(default_factory=dict)
    """What only the service needs."""


class JobStore:
    """The records in a folder, which one process at a time may have open."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError where the folder cannot be used, or another service uses it."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder / "lock")
        except OSError as error:
            raise ConfigError(
                f"{folder}: cannot keep files and jobs there ({error.strerror or error}). Does another "
                "service use it? Name another folder with --set serve.data_folder=..."
            ) from None
        self._records: dict[Kind, dict[str, Record]] = {kind: {} for kind in _PREFIXES}
        for path in sorted(folder.glob(f"*/*/{_RECORD}")):
            record = Record(**json.loads(path.read_text(encoding="utf-8")))
            self._records[record.kind][record.id] = record

    def new(self, kind: Kind, owner: str) -> Record:
        """A record with an id and a folder, which counts once it is saved."""
        record = Record(f"{_PREFIXES[kind]}{secrets.token_hex(12)}", kind, owner, {})
        record.body["id"] = record.id
        record.body["created_at"] = int(time.time())
        self.path(record).mkdir(parents=True)
        return record

    def path(self, record: Record) -> Path:
        """Its folder."""
        return self.folder / record.kind / record.id

    def save(self, record: Record) -> None:
        target = self.path(record) / _RECORD
        draft = target.with_suffix(".partial")
        with draft.open("w", encoding="utf-8") as file:
            json.dump(asdict(record), file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
        self._records[record.kind][record.id] = record

    def find(self, kind: Kind, id: str, owner: str) -> Record:
        """Raises NotHere."""
        record = self._records[kind].get(id)
        if record is None or record.owner != owner:
            raise NotHere(kind, id)
        return record

    def all(self, kind: Kind, owner: str | None = None) -> list[Record]:
        """Oldest first; of everybody if no owner is given."""
        # A list first: another thread may be adding one.
        records = list(self._records[kind].values())
        found = (record for record in records if owner is None or record.owner == owner)
        return sorted(found, key=lambda record: (record.body["created_at"], record.own.get("number", 0)))

    def remove(self, record: Record) -> None:
        self._records[record.kind].pop(record.id, None)
        shutil.rmtree(self.path(record), ignore_errors=True)

    def close(self) -> None:
        self._lock.close()


def link(source: Path, target: Path) -> None:
    """The same content under a second name, so that it outlives the first."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _locked(path: Path) -> IO[bytes]:
    file = path.open("ab")
    try:
        import fcntl
    except ImportError:  # systems without it have no such lock
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file
