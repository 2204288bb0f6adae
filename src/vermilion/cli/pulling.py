"""Fetching a model of the catalogue, with a progress bar on stderr."""

from __future__ import annotations

from vermilion.cli.printing import errors, note


def pull(model: str) -> None:
    """Raises ModelNotFound, or ModelFileError with what to do."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from vermilion.models import catalog

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=errors(), disable=not errors().is_terminal) as progress:
        task = progress.add_task(model, total=None, visible=False)
        files = catalog.pull(
            model, lambda done, total: progress.update(task, completed=done, total=total, visible=True)
        )
    note(f"{model} is in {files.base.parent}")


def ensure(model: str, offline: bool) -> None:
    """Pull `model` if the catalogue has it and this disk does not. With `offline` raises ModelFileError."""
    from vermilion.models import catalog

    entry = next((entry for entry in catalog.available() if entry.name == model), None)
    if entry is None or entry.pulled:
        return
    if offline:
        catalog.find(model)  # raises, and says which command fetches it
    note(f"Fetching {model}, {entry.size_bytes / 1e6:.0f} MB, once")
    pull(model)
