"""Files in the store: what is taken in, what is found, what has had its time."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import IO

from vermilion.errors import BadRequest
from vermilion.serving.jobs.job_store import JobStore, Record, link


def content_of(store: JobStore, record: Record) -> Path:
    return store.path(record) / "content"


def keep_linked(store: JobStore, owner: str, named: tuple[str, str], source: Path) -> Record:
    """A new file, `named` by its purpose and its name, that shares the content of `source` without a copy."""
    record = store.new("file", owner)
    link(source, content_of(store, record))
    return _kept(store, record, *named)


def keep(store: JobStore, owner: str, purpose: str, name: str, source: IO[bytes]) -> Record:
    """A new file with the content of `source`."""
    record = store.new("file", owner)
    with content_of(store, record).open("wb") as target:
        shutil.copyfileobj(source, target)
    return _kept(store, record, purpose, name)


def _kept(store: JobStore, record: Record, purpose: str, name: str) -> Record:
    record.body |= {
        "object": "file",
        "bytes": content_of(store, record).stat().st_size,
        "filename": name,
        "purpose": purpose,
        "status": "processed",
        "expires_at": None,
        "status_details": None,
    }
    store.save(record)
    return record


def check_examples(name: str, data: bytes) -> None:
    """Raises BadRequest that names every line which is no example, and why."""
    # It brings numpy, which the edge starts without.
    from vermilion.data.examples import num_lines_of, parse, report

    examples, refusals = parse(data)
    if refusals:
        message = report(name, num_lines_of(examples, refusals), refusals)
        raise BadRequest(message, "file", "invalid_file_format")
    if not examples:
        raise BadRequest(f"{name}: holds no example.", "file", "invalid_file_format")


def swept(store: JobStore) -> JobStore:
    """`store` without files whose time is over."""
    now = time.time()
    for record in store.all("file"):
        if record.body["expires_at"] is not None and record.body["expires_at"] <= now:
            store.remove(record)
    return store
