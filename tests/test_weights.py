"""Checkpoints from GGUF and from Hugging Face folders, and the adapter beside them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from safetensors.torch import load_file, save_file

from tests.tiny_gguf import ARCHITECTURE, METADATA, write_gguf
from vermilion.errors import ModelFileError
from vermilion.models import adapters, catalog
from vermilion.models.build import build, expected_shapes
from vermilion.models.catalog import ModelFiles
from vermilion.models.configuration import spec_of
from vermilion.models.denoiser_file import DenoiserFile
from vermilion.models.families import Architecture, Traits
from vermilion.models.gguf_file import read_header
from vermilion.models.lora_folder import read_pairs
from vermilion.training.export import hugging_face_tensors

KINDS = (
    GGMLQuantizationType.F32,
    GGMLQuantizationType.F16,
    GGMLQuantizationType.Q8_0,
    GGMLQuantizationType.Q4_1,
)
SMOLLM2 = Architecture(30, 576, 9, 3, 64, 1536, 49152, 8192, rope_theta=100_000.0)


def random_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = expected_shapes(ARCHITECTURE)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def write_adapter(folder: Path, rank: int = 4, parts: int = 1) -> dict[str, torch.Tensor]:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 12}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "denoiser.json").write_text(json.dumps({"mask_token_id": 3}))
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, shape in expected_shapes(ARCHITECTURE).items():
        if name.endswith("_proj.weight"):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, shape[1], generator=generator)
            tensors[f"{stem}.lora_B.weight"] = torch.randn(shape[0], rank, generator=generator)
    names = sorted(tensors)
    for i in range(parts):
        stem = "adapter_model" if parts == 1 else f"adapter_model-{i + 1:05d}-of-{parts:05d}"
        save_file({name: tensors[name] for name in names[i::parts]}, folder / f"{stem}.safetensors")
    save_file({"mask_embedding": torch.ones(ARCHITECTURE.hidden_size)}, folder / "denoiser.safetensors")
    return tensors


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_gguf_gives_back_the_weights_that_were_stored(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    weights = random_weights()
    path = write_gguf(tmp_path / "tiny.gguf", weights, kind)
    built = build(ModelFiles("gguf", "tiny", path, None))
    read = hugging_face_tensors(built.model)
    assert read.keys() == weights.keys() and not adapters.pairs_of(built.model, adapters.DENOISER)
    for name, weight in weights.items():
        wanted = dequantize(quantize(weight, kind), kind) if weight.ndim > 1 else weight
        assert torch.equal(read[name], torch.from_numpy(wanted)), name


def test_every_tensor_has_the_dtype_asked_for(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", random_weights(), GGMLQuantizationType.Q8_0)
    write_adapter(tmp_path / "adapter")
    built = build(ModelFiles("gguf", "tiny", path, tmp_path / "adapter"), torch.bfloat16)
    assert built.model.mask_embedding is not None
    assert {parameter.dtype for parameter in built.model.parameters()} == {torch.bfloat16}
    assert {parameter.device.type for parameter in built.model.parameters()} == {"cpu"}


@pytest.mark.parametrize("kept_bytes", [3, 20, 5000, 60_000])
def test_a_file_cut_short_is_refused(tmp_path: Path, kept_bytes: int) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", random_weights(), GGMLQuantizationType.F32)
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(ModelFileError):
        build(ModelFiles("gguf", "tiny", path, None))


def test_gguf_header_gives_metadata_as_plain_values(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", random_weights(), GGMLQuantizationType.F32)
    metadata = read_header(path).metadata
    assert {key: metadata[key] for key in METADATA} == METADATA


@pytest.mark.parametrize("parts", [1, 3])
def test_adapter_pairs_come_by_module_with_their_scale(tmp_path: Path, parts: int) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", random_weights(), GGMLQuantizationType.F32)
    stored = write_adapter(tmp_path / "adapter", parts=parts)
    model = build(ModelFiles("gguf", "tiny", path, tmp_path / "adapter")).model
    pairs, scale = adapters.read_pairs(tmp_path / "adapter", model)
    assert len(pairs) == 7 * ARCHITECTURE.num_layers and scale == 3.0
    assert adapters.pairs_of(model, adapters.DENOISER).keys() == pairs.keys()
    assert adapters.rank_and_scale(model, adapters.DENOISER) == (4, 3.0)
    a_RI, b_OR = pairs["model.layers.1.mlp.down_proj"]
    assert torch.equal(a_RI, stored["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"])
    assert torch.equal(b_OR, stored["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"])


def _wrong_rank(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 5, "lora_alpha": 8}))


def _no_b(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"]
    save_file(tensors, folder / "adapter_model.safetensors")


def _foreign(folder: Path) -> None:
    save_file(
        {"base_model.model.model.layers.9.x.lora_A.weight": torch.ones(1)},
        folder / "adapter_model.safetensors",
    )


def _rslora(folder: Path) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _lost_part(folder: Path) -> None:
    name = "adapter_model.safetensors"
    (folder / name).rename(folder / "adapter_model-00001-of-00002.safetensors")


def _garbage(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"garbage" * 9)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_wrong_rank, "expected \\[5, "),
        (_no_b, "no full lora_A and lora_B pair for model.layers.0.mlp.up_proj"),
        (_foreign, "fits no projection"),
        (_rslora, "use_rslora"),
        (_pickled, "adapter_model.bin is a pickle"),
        (_lost_part, "1 parts of adapter_model"),
        (_garbage, "not a sound safetensors"),
    ],
)
def test_a_faulty_adapter_is_refused_with_the_reason(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", random_weights(), GGMLQuantizationType.F32)
    write_adapter(tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    with pytest.raises(ModelFileError, match=message):
        build(ModelFiles("gguf", "tiny", path, tmp_path / "adapter"))


def hugging_face_model(kind: str, folder: Path, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 256,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    config = getattr(transformers, f"{kind}Config")(**sizes | options)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    model.save_pretrained(folder, max_shard_size="40KB")
    (folder / "tokenizer.json").write_text("{}")
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_hugging_face_folder_gives_the_same_tensors(tmp_path: Path, kind: str, tied: bool) -> None:
    model = hugging_face_model(kind, tmp_path / "model", tie_word_embeddings=tied, eos_token_id=[7, 9])
    files = catalog.find(str(tmp_path / "model"))
    assert (files.kind, files.name, files.adapter) == ("folder", "model", None)
    built = build(files)
    read = hugging_face_tensors(built.model)
    wanted = {
        name: tensor for name, tensor in model.state_dict().items() if not (tied and name == "lm_head.weight")
    }
    assert read.keys() == wanted.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in wanted.items())
    architecture = built.spec.architecture
    assert (architecture.qkv_bias, architecture.qk_norm) == (kind == "Qwen2", kind == "Qwen3")
    assert architecture.tied_embeddings == tied and built.spec.traits.eos_token_ids == (7, 9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not read"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "RoPE scaling longrope"),
        ({"hidden_size": 64}, "expected \\[256, 64\\]"),
        ({"num_hidden_layers": 3}, "missing, such as model.layers.2"),
    ],
)
def test_a_config_we_do_not_compute_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    hugging_face_model("Llama", tmp_path / "model", tie_word_embeddings=True)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelFileError, match=message):
        build(catalog.find(str(tmp_path / "model")))


@pytest.mark.filterwarnings("ignore")
def test_a_lost_shard_is_named(tmp_path: Path) -> None:
    hugging_face_model("Llama", tmp_path / "model")
    shards = sorted((tmp_path / "model").glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[0].unlink()
    with pytest.raises(ModelFileError, match=f"{len(shards) - 1} parts of model"):
        build(catalog.find(str(tmp_path / "model")))


@pytest.mark.model
def test_embedded_model_loads_whole() -> None:
    built = build(catalog.find(catalog.DEFAULT_MODEL), torch.bfloat16)
    assert built.spec.architecture == SMOLLM2
    assert built.spec.traits == Traits("causal", True, 16, (2,), gated=True, drafter=5)
    drafter = built.model.drafter
    assert drafter is not None and len(drafter.vocabulary_W) == 16_384 and drafter.shape.window == 512
    assert sum(tensor.numel() for tensor in hugging_face_tensors(built.model).values()) == 134_515_008
    assert len(adapters.pairs_of(built.model, adapters.DENOISER)) == 210
    assert adapters.rank_and_scale(built.model, adapters.DENOISER) == (64, 2.0)
    assert built.model.mask_embedding is not None and built.model.mask_embedding.shape == (576,)


def test_shipped_adapter_fits_the_embedded_model() -> None:
    folder = catalog.ASSETS / catalog.DEFAULT_MODEL
    denoiser = DenoiserFile.read(folder)
    wanted = Traits("causal", True, 16, (2,), gated=True)
    assert (denoiser.traits((2,)), denoiser.weights, denoiser.block_length) == (wanted, "lora", 8)
    assert denoiser.facts["licence"] == "Apache-2.0"
    projections = adapters.projections(SMOLLM2)
    pairs, scale = read_pairs(folder, projections, torch.bfloat16, "cpu")
    assert pairs.keys() == projections.keys() and scale == 2.0


def test_a_denoisers_description_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = DenoiserFile(7, "copy", "block", False, False, 4, 8, {"licence": "none", "tokens": [1, 2]})
    written.write(tmp_path)
    assert DenoiserFile.read(tmp_path) == written
    assert DenoiserFile.of(written.traits((1,)), "copy", 8, written.facts) == written


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"context": "sideways"}, "context 'sideways'; allowed: 'causal', 'block', 'full'"),
        ({"weights": "spun"}, "weights 'spun'; allowed: 'lora', 'copy', 'tied'"),
        ({"mask_token_id": "3"}, "mask_token_id '3'; it must be of type int"),
        ({"shift": 1}, "shift 1; it must be of type bool"),
    ],
)
def test_a_denoiser_that_makes_no_sense_is_refused(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    (tmp_path / "denoiser.json").write_text(json.dumps(given))
    with pytest.raises(ModelFileError, match=message):
        DenoiserFile.read(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_denoiser_in_a_folder_sets_the_traits(tmp_path: Path) -> None:
    hugging_face_model("Llama", tmp_path / "model")
    write_adapter(tmp_path / "model" / "adapter")
    path = tmp_path / "model" / "adapter" / "denoiser.json"
    files = catalog.find(str(tmp_path / "model"))
    assert files.adapter == path.parent
    path.write_text(json.dumps({"context": "sideways"}))
    with pytest.raises(ModelFileError, match="context 'sideways'"):
        build(files)
    path.write_text(json.dumps({"context": "block", "shift": False, "block_grid": 4, "mask_token_id": 5}))
    given = spec_of(files).traits
    assert (given.context, given.shift, given.block_grid, given.mask_token_id) == ("block", False, 4, 5)


def test_what_is_stored_as_another_type_is_named(tmp_path: Path) -> None:
    save_file({"model.norm.weight": torch.ones(32, dtype=torch.int8)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ModelFileError, match=r"norm\.weight is stored as I8; these are read: F64, F32"):
        build(ModelFiles("folder", "m", tmp_path, None))


def test_every_disagreement_is_listed_with_the_family(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    files = ModelFiles("folder", "m", tmp_path, None)
    shapes = expected_shapes(spec_of(files).architecture)
    cut = {name: (2, shape[1]) if "k_proj" in name else shape for name, shape in shapes.items()}
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in cut.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    wrong = r"layers\.2\S+ has shape \[2, 512\], expected \[512, 512\]; 1 more\..* of the family llama"
    with pytest.raises(ModelFileError, match=wrong):
        build(files)
    kept = {name: tensor for name, tensor in tensors.items() if "layers.3" not in name}
    save_file({**kept, "model.extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ModelFileError, match=r"9 missing, such as .*, .*, .*; 1 unknown, such as model\.extra"
    ):
        build(files)


def test_a_progress_bar_is_drawn_on_a_terminal_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **sizes}))
    files = ModelFiles("folder", "m", tmp_path, None)
    shapes = expected_shapes(spec_of(files).architecture)
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    build(files)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    build(files)
    assert "100%" in capsys.readouterr().err


CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "intermediate_size": 4096,
    "vocab_size": 8192,
    "max_position_embeddings": 64,
}
MEASURE = """
import json, sys
from pathlib import Path
import torch
from vermilion.models.build import build
from vermilion.models.catalog import ModelFiles

def peak():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024

build(ModelFiles("folder", "small", Path(sys.argv[1]), None), torch.float32)
before = peak()
model = build(ModelFiles("folder", "large", Path(sys.argv[2]), None), torch.float32).model
weights = sum(each.numel() * each.element_size() for each in model.parameters())
print(json.dumps([weights, peak() - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own figures")
def test_no_more_is_in_memory_than_the_weights_and_one_shard(tmp_path: Path) -> None:
    """130 MB of weights in six shards of bfloat16, read as fp32."""
    for name, changes in (("small", {"intermediate_size": 64, "vocab_size": 64}), ("large", {})):
        folder, config = tmp_path / name, CONFIG | changes
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        shapes = expected_shapes(spec_of(ModelFiles("folder", name, folder, None)).architecture)
        names = sorted(shapes)
        for i in range(6):
            shard = {each: torch.ones(shapes[each], dtype=torch.bfloat16) for each in names[i::6]}
            save_file(shard, folder / f"model-{i + 1:05d}-of-00006.safetensors")
    largest = max(path.stat().st_size for path in (tmp_path / "large").glob("*.safetensors"))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    weights, used = json.loads(done.stdout)
    assert weights > 1.2e8
    # A tensor on its way from the shard to its place, and what the allocator keeps.
    assert used < weights + largest + 2.5e7, (used, weights, largest)
