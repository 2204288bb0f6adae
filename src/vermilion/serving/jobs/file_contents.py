"""Files in the store: what is taken in, what is found, what has had its time."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import IO

from vermilion.errors import BadRequest
from vermilion.serving.jobs.job_store import JobStore, Record


def content_of(store: JobStore, record: Record) -> Path:
    return store.path(record) / "content"


def keep(store: JobStore, owner: str, purpose: str, name: str, source: IO[bytes]) -> Record:
    """A new file with the content of `source`."""
    record = store.new("file", owner)
    path = content_of(store, record)
    with path.open("wb") as target:
        shutil.copyfileobj(source, target)
    record.body |= {
        "object": "file",
        "bytes": path.stat().st_size,
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
