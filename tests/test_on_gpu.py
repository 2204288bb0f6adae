"""The prepared run for a machine with a GPU: its budgets, and what it makes of large files."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).parent.parent / "scripts" / "on-gpu"
FUNCTIONS: dict[str, Any] = runpy.run_path(str(SCRIPT))


def test_a_dry_run_shows_parts_that_fit_the_minutes() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--dry-run"], capture_output=True, text=True, check=True, timeout=60
    )
    budgets = [int(found) for found in re.findall(r"at most (\d+) s", done.stdout)]
    assert len(budgets) == 4 and sum(budgets) < 12 * 60
    assert all(word in done.stdout for word in ("-m gpu", "bench --concurrency", "data answers", "convert"))


@pytest.mark.parametrize(
    ("code", "seconds", "status"), [("print(7)", 30.0, "ended"), ("import time; time.sleep(60)", 1.0, "cut")]
)
def test_a_part_ends_with_its_time(code: str, seconds: float, status: str, tmp_path: Path) -> None:
    began = time.monotonic()
    row = FUNCTIONS["run"](FUNCTIONS["Part"]("one", 1.0, [sys.executable, "-c", code]), seconds, tmp_path)
    assert row["status"] == status and time.monotonic() - began < 20
    assert (tmp_path / "one.log").read_text() == ("7\n" if status == "ended" else "")


def test_large_files_become_numbered_parts(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((1000,), float(i)) for i in range(5)}
    file = tmp_path / "state.safetensors"
    save_file(tensors, file)
    assert FUNCTIONS["split"](file, 1_000_000) == [file]
    made = FUNCTIONS["split"](file, 12_000)
    assert [path.name for path in made] == [f"state-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert not file.exists() and all(path.stat().st_size <= 12_000 for path in made)
    read = {name: tensor for path in made for name, tensor in load_file(path).items()}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    save_file(tensors, file)
    with pytest.raises(ValueError, match="alone has"):
        FUNCTIONS["split"](file, 3000)
