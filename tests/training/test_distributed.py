"""Two processes on one batch: the figures, and the files, of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vermilion.config import load
from vermilion.errors import ConfigError
from vermilion.models import catalog
from vermilion.training import toy
from vermilion.training.convert import convert
from vermilion.training.distributed import World
from vermilion.training.recipe import Recipe

TIMEOUT_S = 600
"""A launch takes 8 s of processor time, nearly all of it to import PyTorch three times."""
SCRIPT = f"""
import faulthandler
import sys
from pathlib import Path
# Processes that wait for each other say where, and end, before anybody gives up on them.
faulthandler.dump_traceback_later({TIMEOUT_S - 60}, exit=True)
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
steps = 2
rows = 4
micro_rows = 2
rank = 4
learning_rate = 0.01
warmup_steps = 1
validate_every = 2
plot = false
adapter_dtype = "float32"
stages = [{{ until = 1.0, block_length = 4 }}]
objective = {{ {objective} }}
data = {{ sources = [{{ path = "{examples}" }}], length = 64, held_out = 1 }}
"""


OBJECTIVES = {"adapter": "teacher = 0.5", "tied": "teacher = 0.0, next_token = 1.0, denoise = 0.3"}


def test_a_process_takes_its_share_of_the_rows() -> None:
    parts = [World(rank, 3).part(12) for rank in range(3)]
    assert parts == [(0, 4), (4, 8), (8, 12)]
    assert World().part(5) == (0, 5) and World().total(2.0, 3.0) == [2.0, 3.0]


def recipes(folder: Path, made: dict[str, object], name: str) -> list[Path]:
    paths = []
    for method, objective in OBJECTIVES.items():
        path = folder / f"{name}-{method}.toml"
        path.write_text(
            TOML.format(
                base=made["base"],
                output=folder / name / method,
                method=method,
                objective=objective,
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
        timeout=TIMEOUT_S,
        check=False,
    )


def test_two_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run after run in one launch, too."""
    monkeypatch.setattr(toy, "_STEPS", 1)
    made = toy.make(tmp_path, 0)
    for path in recipes(tmp_path, made, "one"):
        convert(load(Recipe, path))
    done = launch(recipes(tmp_path, made, "two"), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    for method in OBJECTIVES:
        logs = [(tmp_path / name / method / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
        for ours, theirs in zip(*(map(json.loads, log) for log in logs), strict=True):
            for figure in ("loss", "gradient_norm", "tokens", "right"):
                assert theirs[figure] == pytest.approx(ours[figure], rel=1e-4), (method, figure)
        written = sorted((tmp_path / "one" / method / "model").rglob("*.safetensors"))
        assert written
        for path in written:
            other = tmp_path / "two" / path.relative_to(tmp_path / "one")
            ours, theirs = load_file(path), load_file(other)
            assert ours.keys() == theirs.keys()
            for name, tensor in ours.items():
                torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=2e-4)


def test_rows_that_do_not_divide_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vermilion.training import loop
    from vermilion.training.convert import prepare

    monkeypatch.setattr(toy, "_STEPS", 1)
    made = toy.make(tmp_path, 0)
    recipe = Recipe(**{**made, "output": tmp_path / "run", "steps": 1, "rows": 3, "rank": 2})  # type: ignore[arg-type]
    monkeypatch.setattr(loop, "joined", lambda: World(0, 2))
    with pytest.raises(ConfigError, match="rows: 3 is not a multiple of the 2 processes"):
        loop.train(prepare(recipe, catalog.find(recipe.base)))
