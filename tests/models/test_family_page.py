"""docs/DESIGN.md shows a family being added: its diff is applied to a copy of the package and put to use."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from vermilion.models.build import expected_shapes
from vermilion.models.families import Architecture
from vermilion.training import toy

ROOT = Path(__file__).resolve().parents[2]
SHAPE = Architecture(2, 32, 4, 2, 8, 48, 260, 128, qk_norm=True, tied_embeddings=True)
ANSWER = """
import json, sys
from vermilion.config import EngineConfig
from vermilion.engine.llm import LLM
from vermilion.types import Sampling

llm = LLM(sys.argv[1], config=EngineConfig(kv_tokens=512, threads=1, dtype="float32"))
(answer,) = llm.generate("count", Sampling(max_tokens=8, ignore_eos=True))
print(json.dumps([list(llm.model.presets), answer.usage.completion_tokens, llm.engine.traits.block_grid]))
"""


def diffs(title: str) -> list[str]:
    """The diffs under a heading of the page."""
    page = (ROOT / "docs" / "DESIGN.md").read_text(encoding="utf-8")
    section = page.split(f"## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```diff\n(.*?)```", section, re.DOTALL)


def changed(tmp_path: Path, diff: str) -> Path:
    """The package with the diff applied: a folder to import from."""
    copy = tmp_path / "src"
    shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    command = ["git", "apply", "-p1", "-"]
    applied = subprocess.run(command, cwd=tmp_path, input=diff, text=True, capture_output=True, check=False)
    assert applied.returncode == 0, applied.stderr
    return copy


def parrot(folder: Path) -> Path:
    """A checkpoint of the page's family: the toy's texts, random weights under the family's names."""
    folder.mkdir()
    toy._write_texts(folder)
    sizes = {
        "model_type": "parrot_diffusion",
        "num_hidden_layers": SHAPE.num_layers,
        "width": SHAPE.hidden_size,
        "num_attention_heads": SHAPE.num_heads,
        "num_key_value_heads": SHAPE.num_kv_heads,
        "intermediate_size": SHAPE.ffn_size,
        "vocab_size": SHAPE.vocab_size,
        "max_position_embeddings": SHAPE.context_length,
        "tie_word_embeddings": True,
        "block": 8,
    }
    (folder / "config.json").write_text(json.dumps(sizes))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name.replace("model.layers", "parrot"): torch.randn(shape, generator=generator)
        for name, shape in expected_shapes(SHAPE).items()
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_the_pages_family_is_served_by_its_row_alone(tmp_path: Path) -> None:
    (diff,) = diffs("How to add a family")
    assert len([line for line in diff.splitlines() if line.startswith("+")]) < 12
    source, model = changed(tmp_path, diff), parrot(tmp_path / "model")
    there, here = (answered(model, folder) for folder in (source, ROOT / "src"))
    assert there.returncode == 0, there.stderr
    assert json.loads(there.stdout) == [["quality", "balanced", "fast"], 8, 8]
    assert "model_type 'parrot_diffusion' is not read" in here.stderr


def answered(model: Path, source: Path) -> subprocess.CompletedProcess[str]:
    """What the package in `source` makes of a model."""
    return subprocess.run(
        [sys.executable, "-c", ANSWER, str(model)],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
