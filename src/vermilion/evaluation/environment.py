"""What a measurement depends on besides the code: machine, versions, commit, model files."""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vermilion.engine.llm import LLM
from vermilion.errors import ModelFileError
from vermilion.gap_template import FIM_FOLDER
from vermilion.models import catalog
from vermilion.models.denoiser_file import DRAFTER_FILE


def environment(llm: LLM) -> dict[str, Any]:
    """The entries that every row of results carries."""
    info = llm.engine.info()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "model": llm.model.id,
        "device": _accelerator() if info.device.startswith("cuda") else processor(),
        "backend": info.backend,
        "threads": info.threads,
        "dtype": info.dtype,
        "torch": version("torch"),
    }


def _accelerator() -> str:
    import torch

    return torch.cuda.get_device_name()


def command() -> str:
    """The command line that is running, without where it writes to."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    kept = [i for i, word in enumerate(words) if not word.startswith("--output")]
    return shlex.join(words[i] for i in kept if i == 0 or words[i - 1] != "--output")


def commit() -> str:
    """The checked-out commit of this code, with -dirty where it was changed; empty outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True, timeout=5,
            cwd=Path(__file__).parent,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def fingerprint(name: str, denoiser: Path | None = None) -> str:
    """Twelve hexadecimal digits that identify a model's denoiser, with what lies beside it, or, without one,
    its weights.

    Raises ModelNotFound or ModelFileError.
    """
    files = catalog.find(name)
    if denoiser is not None and not denoiser.is_dir():
        raise ModelFileError(f"{denoiser}: no such folder of a denoiser.")
    folder = denoiser or files.adapter or files.base
    paths = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
    # What the drafter sees and how the adapter for gaps ends are numbers in their descriptions.
    paths += [*folder.glob(DRAFTER_FILE), *sorted((folder / FIM_FOLDER).glob("*"))]
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def processor() -> str:
    """The CPU's name."""
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        yield from path.read_text().split("\n")
