"""The log of a run: one line of JSON per step, TensorBoard scalars, a plot at the end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from vermilion.text import split_lines

LOG, PLOT, BOARD = "log.jsonl", "run.png", "tensorboard"
_PANELS = (("loss", "held_out_nll", "held_out_next"), ("right", "accepted"), ("learning_rate",))


class Records:
    """The log of a run folder, open for the steps behind `step`.

    Lines of later steps, left by a run that died behind its last checkpoint, are dropped: they will be
    written again.
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        path = folder / LOG
        if path.is_file():
            kept = [json.dumps(row) + "\n" for row in read(folder) if row["step"] <= step]
            draft = path.with_suffix(".partial")
            draft.write_text("".join(kept), encoding="utf-8")
            draft.replace(path)
        self._log = path.open("a", encoding="utf-8")
        self._board = _board(folder / BOARD, step) if tensorboard else None

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()
        if self._board is not None:
            self._board.close()

    def add(self, figures: Mapping[str, float]) -> None:
        self._log.write(json.dumps(dict(figures)) + "\n")
        self._log.flush()
        if self._board is not None:
            for name, value in figures.items():
                if name != "step":
                    self._board.add_scalar(name, value, int(figures["step"]))


def read(folder: Path) -> list[dict[str, float]]:
    """The steps logged in a run folder; a last line that was cut off is left out."""
    rows = []
    for line in split_lines((folder / LOG).read_text(encoding="utf-8")):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def plot(folder: Path) -> Path | None:
    """Draw the run's log to FOLDER/run.png; None, with a note, where matplotlib is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no plot of the run: pip install 'vermilion[train]'", file=sys.stderr)
        return None
    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = read(folder)
    shown = [names for names in _PANELS if any(name in row for row in rows for name in names)]
    figure, axes = pyplot.subplots(len(shown), 1, sharex=True, figsize=(8, 2.6 * len(shown)), squeeze=False)
    for axis, names in zip(axes[:, 0], shown, strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                style = "." if len(points) < 2 else "o-" if name.startswith(("held", "acc")) else "-"
                axis.plot(*_columns(points), style, label=name, markersize=3, linewidth=1)
        axis.legend(loc="best", frameon=False)
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("step")
    figure.tight_layout()
    path = folder / PLOT
    draft = path.with_suffix(f".{os.getpid()}.png")
    figure.savefig(draft, dpi=110)
    pyplot.close(figure)
    draft.replace(path)
    return path


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        print("no TensorBoard log: pip install 'vermilion[train]'", file=sys.stderr)
        return None
    # Scalars of steps that are done again are hidden.
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
