"""What a model's family decides about its engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import save_file

from tests import tiny
from tests.goldens import all_logits
from vermilion.config import EngineConfig
from vermilion.decoding.passes import Pass, Segment
from vermilion.engine import loading
from vermilion.engine.loading import assemble, load_model
from vermilion.engine.worker import Worker
from vermilion.errors import ConfigError
from vermilion.models.build import expected_shapes
from vermilion.models.families import FAMILIES, Family, ModelSpec, Traits, family_table
from vermilion.models.linear import Float8Linear, Int8Linear, Linear
from vermilion.training import toy


def spec(grid: int = 0, multiple: int = 1) -> ModelSpec:
    traits = replace(tiny.TRAITS["block"], block_grid=grid)
    row = replace(FAMILIES[0], page_multiple=multiple)
    return ModelSpec("tiny", tiny.ARCHITECTURE, traits, row)


@pytest.mark.parametrize(
    ("grid", "multiple", "page_size"), [(4, 1, 16), (8, 1, 16), (32, 1, 32), (12, 1, 48), (4, 24, 48)]
)
def test_pages_hold_whole_blocks_and_what_the_family_needs(grid: int, multiple: int, page_size: int) -> None:
    config = EngineConfig(kv_tokens=1024, dtype="float64")
    engine = assemble(tiny.model("block"), spec(grid, multiple), tiny.Letters(), config)  # type: ignore[arg-type]
    assert engine.scheduler.cache.page_size == page_size


def test_a_page_size_that_cuts_blocks_is_refused() -> None:
    config = EngineConfig(kv_tokens=1024, page_size=16, dtype="float64")
    with pytest.raises(ConfigError, match=r"engine.page_size: 16 is not a multiple of 32, as tiny needs"):
        assemble(tiny.model("block"), spec(32), tiny.Letters(), config)  # type: ignore[arg-type]


def checkpoint(folder: Path) -> None:
    """Tiny, with a tokenizer."""
    shapes = expected_shapes(toy._write_texts(folder))
    generator = torch.Generator().manual_seed(2)
    tensors = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(("quantize", "off"), [("int8", 0.02), ("fp8", 0.15)])
def test_weights_of_eight_bits_are_chosen_by_the_settings(
    quantize: Literal["int8", "fp8"], off: float, tmp_path: Path
) -> None:
    checkpoint(tmp_path)
    logits = []
    for chosen in (quantize, "none"):
        config = EngineConfig("torch", chosen, kv_tokens=512, threads=1, dtype="bfloat16")  # type: ignore[arg-type]
        worker = load_model(str(tmp_path), config).engine.worker
        assert isinstance(worker, Worker)
        kind = {"none": Linear, "int8": Int8Linear, "fp8": Float8Linear}[chosen]
        assert all(type(linear) is kind for linear, _ in worker.model.products())
        logits.append(all_logits(worker, Pass((Segment(tuple(range(5, 25)), 0, 0, 0, span=1),))).double())
    assert 0 < (logits[0] - logits[1]).norm() < off * logits[1].norm()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantize": "fp8"}, "fp8 is for GPUs, and the model is to run on cpu; take q8 or q4"),
        ({"quantize": "int8", "backend": "native"}, "engine.quantize is int8"),
        ({"quantize": "int8", "backend": "torch", "tensor_parallel": 2}, "leave engine.tensor_parallel at 1"),
    ],
)
def test_weights_of_eight_bits_are_refused_where_they_cannot_be_had(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    checkpoint(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_model(str(tmp_path), EngineConfig(kv_tokens=512, device="cpu", **settings))


def test_float8_is_refused_on_a_gpu_that_cannot_multiply_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an A100")
    config = EngineConfig(quantize="fp8", device="cuda")
    with pytest.raises(ConfigError, match=r"compute capability 8.9, which an A100 is not; take int8"):
        loading._linear_kind(config, torch.device("cuda"))
    assert loading._linear_kind(replace(config, quantize="int8"), torch.device("cuda")) == "int8"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert loading._linear_kind(config, torch.device("cuda")) == "fp8"


def test_a_familys_template_serves_checkpoints_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = toy._write_texts(tmp_path)
    shapes = expected_shapes(architecture)
    save_file(
        {name: torch.randn(shape) * 0.1 for name, shape in shapes.items()}, tmp_path / "model.safetensors"
    )
    texts = tmp_path / "tokenizer_config.json"
    texts.write_text(json.dumps({**json.loads(texts.read_text()), "chat_template": None}))
    traits = Traits("full", False, 3, (0,))
    own = Family("own", ("llama",), traits=traits, chat_template="{{ messages[0].content }}!")
    config = EngineConfig(kv_tokens=512, threads=1, dtype="float32")
    for row, wanted in ((own, "hi!"), (replace(own, chat_template=""), None)):
        monkeypatch.setattr(family_table, "FAMILIES", [row])
        template = load_model(str(tmp_path), config).template
        given = template and template.render([{"role": "user", "content": "hi"}])
        assert given == wanted
