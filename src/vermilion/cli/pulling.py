"""Fetching a model, with a progress bar on stderr."""

from __future__ import annotations

from vermilion.cli.list_models import size_text
from vermilion.cli.printing import errors, note


def pull(model: str) -> None:
    """Raises ModelNotFound, or ModelFileError with what to do."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from vermilion.models import catalog
    from vermilion.models.configuration import spec_of

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=errors(), disable=not errors().is_terminal) as progress:
        task = progress.add_task(model, total=None, visible=False)
        files = catalog.pull(
            model, lambda done, total: progress.update(task, completed=done, total=total, visible=True)
        )
    note(f"{model} is in {files.text_folder}")
    spec_of(files)  # raises for a kind of model that is not read, while the user still looks


def ensure(model: str, offline: bool) -> None:
    """Pull `model` if this disk does not have it. With `offline` raises ModelFileError."""
    from vermilion.models import catalog

    if catalog.is_pulled(model):
        return
    if offline:
        catalog.find(model)  # raises, and says which command fetches it
    entry = next((entry for entry in catalog.available() if entry.name == model), None)
    size = f", {size_text(entry.size_bytes)}" if entry else ""
    note(f"Fetching {model}{size}, once")
    pull(model)
