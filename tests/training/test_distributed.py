"""Two processes on one batch: the figures, and the files, of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vermilion.training import toy
from vermilion.training.convert import convert
from vermilion.training.distributed import World
from vermilion.training.recipe import Recipe

SCRIPT = """
import sys
from pathlib import Path
from vermilion.config import load
from vermilion.training.convert import convert
from vermilion.training.recipe import Recipe
for name in sys.argv[1:]:
    convert(load(Recipe, Path(name)))
"""
TOML = """
base = "{base}"
output = "{output}"
method = "{method}"
mask_token_id = {mask}
steps = 3
rows = 4
micro_rows = 2
rank = 4
learning_rate = 0.01
warmup_steps = 1
validate_every = 3
plot = false
adapter_dtype = "float32"
stages = [{{ until = 1.0, block_length = 4 }}]
data = {{ sources = [{{ path = "{examples}" }}], length = 64, held_out = 1 }}
"""


def test_a_process_takes_its_share_of_the_rows() -> None:
    parts = [World(rank, 3).part(12) for rank in range(3)]
    assert parts == [(0, 4), (4, 8), (8, 12)]
    assert World().part(5) == (0, 5) and World().total(2.0, 3.0) == [2.0, 3.0]


def recipes(folder: Path, made: dict[str, object], name: str) -> list[Path]:
    paths = []
    for method in ("adapter",):
        path = folder / f"{name}-{method}.toml"
        path.write_text(
            TOML.format(
                base=made["base"],
                output=folder / name / method,
                method=method,
                mask=made["mask_token_id"],
                examples=made["data"].sources[0].path,  # type: ignore[attr-defined]
            )
        )
        paths.append(path)
    return paths


def launch(paths: list[Path], num_processes: int) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={num_processes}",
    ]
    script = paths[0].with_name("script.py")
    script.write_text(SCRIPT)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(toy.__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.run(
        [*command, str(script), *map(str, paths)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "_STEPS", 3)
    made = toy.make(tmp_path, 0)
    from vermilion.config import load

    for path in recipes(tmp_path, made, "one"):
        convert(load(Recipe, path))
    done = launch(recipes(tmp_path, made, "two"), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    for method in ("adapter",):
        logs = [(tmp_path / name / method / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
        for ours, theirs in zip(*(map(json.loads, log) for log in logs), strict=True):
            for figure in ("loss", "gradient_norm", "tokens", "right"):
                assert theirs[figure] == pytest.approx(ours[figure], rel=1e-4), (method, figure)
