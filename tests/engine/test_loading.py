"""What a model's family decides about its engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests import tiny
from vermilion.config import EngineConfig
from vermilion.engine.loading import assemble, load_model
from vermilion.errors import ConfigError
from vermilion.models.build import expected_shapes
from vermilion.models.families import FAMILIES, Family, ModelSpec, Traits, family_table
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
