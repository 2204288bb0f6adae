"""Every row of the family table: a checkpoint of its kind gives the logits that its publisher computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.goldens import FOLDER, Golden
from tests.models.test_transformer import EXPERTS, IDS, hugging_face, ours, without_casts
from tests.parity.checkpoint import goldens
from vermilion.errors import ModelFileError
from vermilion.models.attention import DenseAttention, Visibility
from vermilion.models.build import expected_shapes, published
from vermilion.models.configuration import hugging_face_config, spec_from_config
from vermilion.models.families import (
    FAMILIES,
    LLAMA,
    Family,
    ModelSpec,
    RopeScaling,
    Traits,
    family_of,
    family_table,
)
from vermilion.models.families.family_presets import MAX_BLOCK_LENGTH
from vermilion.models.transformer import Rows, Transformer

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 200,
    "max_position_embeddings": 64,
}
# What transformers computes with the weights, and what a published config.json says besides.
PUBLISHED = {
    "sdar": ("qwen3", {"model_type": "sdar", "block_size": 8, "mask_token_id": 59}),
    "fast-dllm-v2": ("qwen2", {"model_type": "Fast_dLLM_Qwen", "bd_size": 4, "mask_token_id": 59}),
    "dream": ("qwen2", {"model_type": "Dream", "mask_token_id": 59, "eos_token_id": 7}),
}
LLADA = {
    "model_type": "llada",
    "block_type": "llama",
    "d_model": 32,
    "n_layers": 3,
    "n_heads": 4,
    "n_kv_heads": 2,
    "mlp_hidden_size": 44,
    "embedding_size": 61,
    "vocab_size": 60,
    "max_sequence_length": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "weight_tying": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "activation_type": "silu",
    "mask_token_id": 59,
    "eos_token_id": 7,
}
PUBLISHED["llada"] = ("llama", LLADA)
# Where their publishers' code is that of transformers but for who sees whom.
PUBLISHED |= {
    "stable-diffcoder": ("llama", {"architectures": ["StableDiffcoderForCausalLM"]}),
    "open-dcoder": ("qwen2", {"architectures": ["OpenDCoder"]}),
    "dream-reasoner": ("qwen3", {"model_type": "Dream", "architectures": ["DreamReasoner"]}),
    "sdar-moe": ("qwen3-moe", {"model_type": "sdar_moe", "block_size": 8, "mask_token_id": 59}),
}
STAND_INS = {
    "stable-diffcoder": "its publisher's class is a child of that Llama",
    "dream-reasoner": "in place of its publisher's code, which is on the hub only",
}
# Theirs to LLaDA's names, each spelled as its publisher's modelling code does.
LLADA_NAMES = {
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
    "model.layers": "model.transformer.blocks",
    ".self_attn.o_proj": ".attn_out",
    ".self_attn": "",
    ".mlp.gate_proj": ".ff_proj",
    ".mlp.up_proj": ".up_proj",
    ".mlp.down_proj": ".ff_out",
    ".input_layernorm": ".attn_norm",
    ".post_attention_layernorm": ".ff_norm",
}
TRAITS = {
    "stable-diffcoder": Traits("block", False, 5, (2,), block_grid=4),
    "open-dcoder": Traits("full", True, 151665, ()),
    "dream-reasoner": Traits("block", False, 151669, (), block_grid=32),
    "sdar-moe": Traits("block", False, 59, (), block_grid=8),
    "llada": Traits("full", False, 59, (7,)),
    "sdar": Traits("block", False, 59, (), block_grid=8),
    "fast-dllm-v2": Traits("block", True, 59, (), block_grid=4),
    "dream": Traits("full", True, 59, (7,)),
}


def renamed(folder: Path) -> None:
    """The checkpoint in `folder` under LLaDA's names."""
    tensors = load_file(folder / "model.safetensors")
    for old, new in LLADA_NAMES.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors")


def fused(folder: Path) -> None:
    """Projections of one input as one tensor each."""
    tensors = load_file(folder / "model.safetensors")
    for index in range(3):
        prefix = f"model.layers.{index}."
        qkv = [tensors.pop(f"{prefix}self_attn.{name}_proj.weight") for name in "qkv"]
        gate_up = [tensors.pop(f"{prefix}mlp.{name}_proj.weight") for name in ("gate", "up")]
        tensors[f"{prefix}attention.qkv.weight"] = torch.cat(qkv)
        tensors[f"{prefix}mlp.gate_up.weight"] = torch.cat(gate_up)
    save_file(tensors, folder / "model.safetensors")


def visible(spec: ModelSpec, length: int) -> Tensor:
    """bool [query, key]: whom committed text sees, written down from the traits' definition."""
    at = torch.arange(length)
    grid = spec.traits.block_grid or 1
    return {
        "causal": at[:, None] >= at[None],
        "block": at[:, None] // grid >= at[None] // grid,
        "full": torch.ones(length, length, dtype=torch.bool),
    }[spec.traits.context]


def logits(model: Transformer, seen: Tensor) -> Tensor:
    """Ours for IDS in one forward; every row sees a run of keys from the first on."""
    count = len(IDS)
    pool, rows, ends = model.new_pool(count), list(range(count)), seen.sum(1).tolist()
    sight = Visibility(rows, [0] * count, [0] * count, ends, count, 0)
    attention = DenseAttention(model.own.num_heads, pool)
    forward = Rows(
        torch.tensor(IDS),
        torch.arange(count),
        torch.zeros(count, dtype=torch.bool),
        torch.arange(count),
        attention.plan([sight], torch.arange(count)[None], count),
    )
    with torch.inference_mode():
        return model.logits(model(forward, pool))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_kind_is_read_and_computed_as_transformers_computes_it(
    tmp_path: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    transformers = pytest.importorskip("transformers")
    kind, config = PUBLISHED[name]
    # Routers of transformers are float32 whatever the dtype.
    exact = kind != "qwen3-moe"
    theirs = hugging_face(kind)
    change = renamed if name == "llada" else None
    model, spec = ours(theirs, tmp_path, torch.float64 if exact else torch.float32, config, change)
    assert (spec.family.name, spec.traits) == (name, TRAITS[name])
    seen = visible(spec, len(IDS))
    theirs.set_attn_implementation("sdpa")
    if exact:
        theirs = theirs.double()
        without_casts(theirs, spec.architecture)
    hidden = torch.zeros(1, 1, *seen.shape, dtype=theirs.dtype).masked_fill_(~seen, -torch.inf)
    with torch.inference_mode():
        wanted = theirs(torch.tensor([IDS]), attention_mask=hidden).logits[0]
    got = logits(model, seen)
    torch.testing.assert_close(got, wanted, atol=1e-11 if exact else 1e-5, rtol=0)
    record_property("family", name)
    record_property("parity_error", (got - wanted).abs().max().item())
    why = STAND_INS.get(name, "")
    record_property("reference", f"transformers {transformers.__version__}{f' ({why})' if why else ''}")


@pytest.mark.filterwarnings("ignore")
def test_projections_that_are_published_fused_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    products = LLAMA.products | {"qkv": ("attention.qkv",), "gate_up": ("mlp.gate_up",)}
    row = Family("fused", ("fused",), names=replace(LLAMA, products=products))
    theirs = hugging_face("llama")
    whole, spec = ours(theirs, tmp_path / "split", torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(family_table, "FAMILIES", [row])
        model, _ = ours(theirs, tmp_path / "fused", torch.float64, {"model_type": "fused"}, fused)
    seen = visible(spec, len(IDS))
    assert torch.equal(logits(model, seen), logits(whole, seen))


def test_weights_are_written_under_their_familys_names() -> None:
    products = LLAMA.products | {"qkv": ("attention.qkv",), "gate_up": ("mlp.gate_up",)}
    row = Family("fused", ("fused",), fixed={"qkv_bias": True}, names=replace(LLAMA, products=products))
    spec = replace(spec_from_config({**SIZES, "model_type": "qwen2"}, "m"), family=row)
    tensors = {name: torch.randn(shape) for name, shape in expected_shapes(spec.architecture).items()}
    written = published(tensors, spec)
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == expected_shapes(
        spec.architecture, row.names
    )
    for kind in ("weight", "bias"):
        parts = [tensors[f"model.layers.1.self_attn.{name}_proj.{kind}"] for name in "qkv"]
        assert torch.equal(written[f"model.layers.1.attention.qkv.{kind}"], torch.cat(parts))
    llada = spec_from_config(LLADA, "m")
    tensors = {name: torch.randn(shape) for name, shape in expected_shapes(llada.architecture).items()}
    assert (
        published(tensors, llada)["model.transformer.blocks.2.ff_out.weight"]
        is (tensors["model.layers.2.mlp.down_proj.weight"])
    )


def test_every_diffusion_family_is_compared_with_a_reference() -> None:
    golden = {
        Golden.read(path.parent.name).provenance["family"] for path in FOLDER.glob("*/golden.safetensors")
    }
    compared = PUBLISHED.keys() | golden | {"diffusion-gemma", "i-dlm"} | {each.family for each in goldens()}
    assert {family.name for family in FAMILIES if family.traits is not None} == compared


def test_what_a_name_or_its_code_says_tells_families_of_one_type_apart() -> None:
    given = {
        "dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1": ("a2d-qwen3", "a2d-qwen3-block"),
        "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1": ("a2d-qwen3", "a2d-qwen3"),
        "fredzzp/open-dcoder-0.5B": ("qwen2", "open-dcoder"),
        "Qwen/Qwen2.5-0.5B": ("qwen2", "qwen2"),
        "Dream-org/DreamOn-v0-7B": ("Dream", "dreamon"),
        "Dream-org/DreamReasoner-8B": ("Dream", "dream-reasoner"),
        "apple/DiffuCoder-7B-Instruct": ("Dream", "dream"),
        "inclusionAI/LLaDA2.2-flash": ("llada2_moe", "llada2.2"),
        "inclusionAI/LLaDA2.1-mini": ("llada2_moe", "llada2.1"),
    }
    named = {name: family_of({"model_type": kind}, name).name for name, (kind, _) in given.items()}
    assert named == {name: family for name, (_, family) in given.items()}
    spec = spec_from_config({**SIZES, "model_type": "Dream"}, "DreamOn")
    assert spec.traits.expand_token_id == 151667


def test_presets_follow_from_the_traits_unless_the_row_has_its_own() -> None:
    for name, (kind, config) in PUBLISHED.items():
        spec = spec_from_config({**SIZES, **EXPERTS, "model_type": kind, **config}, name)
        assert list(spec.presets) == ["quality", "balanced", "fast"] and spec.default_preset == "balanced"
        block = spec.traits.block_grid or 32
        # Dream's own sampler works on the whole answer at once.
        whole = spec.presets["quality"].decoder == "dream-entropy"
        expected = [MAX_BLOCK_LENGTH if whole else block, block, block]
        assert [preset.block_length for preset in spec.presets.values()] == expected


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "sdar", "Dream"])
def test_a_written_config_is_read_back_as_the_same_model(model_type: str) -> None:
    spec = spec_from_config(
        {**SIZES, "model_type": model_type, "num_key_value_heads": 2, "head_dim": 16}, "m"
    )
    assert spec_from_config(hugging_face_config(spec), "m") == spec
    capped = replace(spec, architecture=replace(spec.architecture, logit_softcap=30.0))
    with pytest.raises(ModelFileError, match="logit_softcap cannot be written"):
        hugging_face_config(capped)
    scaling = RopeScaling("yarn", {"factor": 4.0, "original_max_position_embeddings": 16})
    long = replace(spec, architecture=replace(spec.architecture, rope_scaling=scaling, rope_fraction=0.5))
    assert spec_from_config(hugging_face_config(long), "m") == long


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_type": "llama", "hidden_act": "relu"}, "activation relu"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "longrope"}}, "RoPE scaling longrope"),
        ({"model_type": "llada"}, "of llada {'block_type': 'llama'} is read; config.json has .*None"),
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not read; these are: .*rnd1, sdar"),
        ({"model_type": "llama", "hidden_size": None}, "config.json lacks hidden_size"),
    ],
)
def test_a_config_beyond_the_backbone_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        spec_from_config({**SIZES, **given}, "m")


def test_windows_that_no_layer_uses_are_no_hindrance() -> None:
    config = {**SIZES, "model_type": "qwen2", "use_sliding_window": False, "sliding_window": 8}
    assert spec_from_config(config, "m").architecture.layers == ()
    assert spec_from_config({**config, "layer_types": ["full_attention"] * 2}, "m").architecture.layers == ()
