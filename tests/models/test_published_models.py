"""The catalogue says what is true of the family table, and memory what a load really takes."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.native.tiny_native import ARCHITECTURES, packed, shapes_of
from vermilion.config import ConfigError, EngineConfig
from vermilion.models import hub, published_models
from vermilion.models.families import FAMILIES, Architecture, Experts, LayerKind, family_of
from vermilion.models.memory import FORMATS, cache_bytes_per_token, num_parameters, weight_bytes
from vermilion.models.model_facts import ModelFacts, facts_of_name
from vermilion.models.transformer import Transformer

ROWS = published_models.published_models()
RUN = {row.name for row in ROWS.values() if not row.obstacle}


def test_the_catalogue_has_thirty_checkpoints_of_repositories_of_their_own() -> None:
    assert len(ROWS) >= 30
    places = [(row.repository, row.revision) for row in ROWS.values()]
    assert len(set(places)) == len(places)
    for row in ROWS.values():
        assert re.fullmatch(r"[a-z0-9.-]+:[a-z0-9.-]+", row.name), row.name
        assert re.fullmatch(r"[\w-]+/[\w.-]+", row.repository), row.repository
        assert re.fullmatch(r"[0-9a-f]{40}|", row.revision), row.revision
        assert row.num_parameters and row.about, row.name
        assert hub.HubModel(row.name, row.repository).folder.name == row.name.replace(":", "+")


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.size_gb and row.shape])
def test_a_shape_gives_the_published_size(name: str) -> None:
    """The files hold bf16; half a percent is headers and tokenizers."""
    row = ROWS[name]
    assert math.isclose(row.weight_bytes("bf16"), row.size_gb * 1e9, rel_tol=0.005)


def test_every_diffusion_family_of_the_table_has_a_checkpoint_that_runs() -> None:
    families = {family.name for family in FAMILIES if family.traits is not None}
    assert families <= {row.family for row in ROWS.values()}
    for name in RUN:
        family = ROWS[name].family_row
        assert family is not None
        assert ROWS[name].default_preset, name


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.family_row is not None])
def test_a_checkpoint_is_read_as_the_family_that_its_row_says(name: str) -> None:
    row = ROWS[name]
    family = row.family_row
    assert family is not None
    config = {"model_type": family.model_types[0], **family.where}
    assert family_of(config, f"{name} ({row.repository})").name == row.family


def test_a_row_that_makes_no_sense_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "catalogue.toml"
    path.write_text(
        '[shapes]\n[[models]]\nname = "a:1"\nrepository = "a/b"\nfamily = "sdar"\nlicense = "x"\n'
    )
    monkeypatch.setattr(published_models, "FILE", path)
    for cached in (published_models.published_models, published_models._read):
        cached.cache_clear()
    try:
        with pytest.raises(
            ConfigError, match=r"catalogue\.license: no such setting\. Did you mean catalogue\.licence"
        ):
            published_models.published_models()
    finally:
        monkeypatch.undo()
        for cached in (published_models.published_models, published_models._read):
            cached.cache_clear()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_parameters_are_those_that_a_checkpoint_must_have(kind: str) -> None:
    a = ARCHITECTURES[kind]
    assert num_parameters(a) == sum(math.prod(shape) for shape in shapes_of(a).values())


def test_experts_count_once_each_and_the_router_too() -> None:
    plain = Architecture(2, 64, 4, 2, 16, 96, 200, 64)
    experts = Experts(8, 2, 32, shared_size=48, router_bias=True)
    routed = replace(plain, layers=(LayerKind(), LayerKind(experts=experts, dense=False)))
    added = 8 * 3 * 64 * 32 + 3 * 64 * 48 + 8 * 64 + 8 - 3 * 64 * 96
    assert num_parameters(routed) == num_parameters(plain) + added


# Others have sizes that are padded to whole blocks, as no published model has.
PACKED = {
    **{name: ARCHITECTURES[name] for name in ("plain", "biased", "normed", "wide")},
    "routed": replace(ARCHITECTURES["plain"], layers=ARCHITECTURES["grouped"].layers),
}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", PACKED)
def test_the_native_backend_takes_the_memory_that_is_foretold(
    kind: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = PACKED[kind]
    monkeypatch.setitem(ARCHITECTURES, kind, a)
    made = packed(kind, bits, denoiser=False)
    # Tensors begin at multiples of 64 bytes; their names and the rotary frequencies are in the file as well.
    slack = 64 * len(made._entries) + len(json.dumps(made._entries)) + 8 * a.head_dim
    foretold = weight_bytes(a, "q4" if bits == 4 else "q8")
    assert foretold <= made.size_bytes <= foretold + slack


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_pytorch_takes_the_memory_that_is_foretold(kind: str) -> None:
    a = ARCHITECTURES[kind]
    for quantize in ("int8", "fp8"):
        # Numbers of 16 bits beside those of eight.
        parameters = list(Transformer(a, quantize).parameters())
        weights = sum(each.numel() * min(each.element_size(), 2) for each in parameters)
        assert weights == weight_bytes(a, quantize)  # type: ignore[arg-type]
    model = Transformer(a)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert weights == weight_bytes(a, "float32")
    pool = model.new_pool(96)
    assert pool.numel() * pool.element_size() == 96 * cache_bytes_per_token(a, "float32")


def test_what_fits_is_asked_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    row = facts_of_name("sdar:8b")
    tokens = EngineConfig().kv_tokens
    published = ROWS["sdar:8b"]
    assert row.memory_bytes == {kind: published.memory_bytes(kind, tokens) for kind in FORMATS}
    monkeypatch.setattr("vermilion.models.machine.memory_bytes", lambda: 8 * 10**9)
    monkeypatch.setattr("vermilion.models.machine.gpu_memory_bytes", lambda: 24 * 10**9)
    assert [row.fits(kind) for kind in FORMATS] == [True, False, True]
    monkeypatch.setattr("vermilion.models.machine.gpu_memory_bytes", lambda: 0)
    assert row.fits("bf16") is False
    assert ModelFacts("x", False, 0).fits("q4") is None
