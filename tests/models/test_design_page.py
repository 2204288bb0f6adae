"""docs/DESIGN.md adds a kind of linear layer by a diff: applied as it stands, it is one like the others."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests import tiny
from vermilion.decoding.reference import Reference
from vermilion.models import linear, transformer
from vermilion.models.build import fill
from vermilion.models.families import LLAMA
from vermilion.models.transformer import Transformer
from vermilion.models.weights import TensorFolder
from vermilion.training.export import hugging_face_tensors
from vermilion.types import Decoding, Sampling

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def patched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models use `linear.py` as the page's diff leaves it."""
    page = (ROOT / "docs" / "DESIGN.md").read_text(encoding="utf-8")
    (diff,) = re.findall(r"```diff\n(--- a/src/vermilion/models/linear\.py\n.*?)```", page, re.DOTALL)
    copy = tmp_path / "src" / "vermilion" / "models" / "linear.py"
    copy.parent.mkdir(parents=True)
    copy.write_text(Path(linear.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    command = ["git", "apply", "--recount", "-"]
    done = subprocess.run(command, cwd=tmp_path, input=diff, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("patched_linear", copy)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "patched_linear", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(transformer, "LINEAR_KINDS", module.LINEAR_KINDS)


@pytest.mark.usefixtures("patched")
def test_the_pages_kind_of_linear_layer_is_stored_computed_exported_and_decoded(tmp_path: Path) -> None:
    dense = tiny.model("block")
    with torch.device("meta"):
        ternary = Transformer(tiny.ARCHITECTURE, "ternary")
    given = hugging_face_tensors(dense)
    save_file(given, tmp_path / "dense.safetensors")
    fill(ternary, TensorFolder(tmp_path, "dense"), LLAMA, torch.float64, "cpu")
    stored = hugging_face_tensors(ternary)
    assert stored.keys() == given.keys()
    for name, tensor in stored.items():
        scales = tensor.abs().amax(-1, keepdim=True)
        assert "norm" in name or torch.equal(tensor, tensor.sign() * scales), name
    # The same numbers in a dense model give the same text.
    rounded = Transformer(tiny.ARCHITECTURE)
    save_file(stored, tmp_path / "rounded.safetensors")
    fill(rounded, TensorFolder(tmp_path, "rounded"), LLAMA, torch.float64, "cpu")
    asked = ((5, 9, 33), Sampling(max_tokens=12, ignore_eos=True), Decoding("threshold", block_length=4))
    texts = [Reference(one, tiny.TRAITS["block"]).generate(*asked).tokens for one in (ternary, rounded)]
    assert texts[0] == texts[1]
