"""The family table. A new family is a row here; docs/DESIGN.md shows one being added."""

from __future__ import annotations

from dataclasses import replace

from vermilion.errors import ModelFileError
from vermilion.models.families.dhara import DHARA
from vermilion.models.families.family import HUGGING_FACE, Family, GGUFKind
from vermilion.models.families.family_presets import (
    DREAM,
    DREAMON,
    FAST_DLLM_V2,
    LLADA,
    LLADA2,
    LLADA21,
    LLADA22,
    REORDERING,
    SDAR,
    STRIDED,
)
from vermilion.models.families.gemma import DIFFUSION_GEMMA
from vermilion.models.families.layer_rules import (
    Config,
    llada2_layers,
    llada_moe_layers,
    olmoe_layers,
    position_free_layers,
    qwen3_moe_layers,
)
from vermilion.models.families.mdlm import BD3LM, MDLM
from vermilion.models.families.names import LLAMA_NORMS, LLAMA_PRODUCTS, ExpertNames, TensorNames
from vermilion.models.families.nemotron import NEMOTRON
from vermilion.models.families.traits import Traits

_LLADA_KEYS = {
    "num_layers": "n_layers",
    "hidden_size": "d_model",
    "num_heads": "n_heads",
    "num_kv_heads": "n_kv_heads",
    "ffn_size": "mlp_hidden_size",
    "vocab_size": "embedding_size",
    "context_length": "max_sequence_length",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "weight_tying",
    "activation": "activation_type",
    "qkv_bias": "include_qkv_bias",
    "output_bias": "include_bias",
    "ffn_bias": "include_bias",
    "mask_token_id": "mask_token_id",
    "eos_token_ids": "eos_token_id",
}
_LLADA_NAMES = TensorNames(
    embedding="model.transformer.wte",
    norm="model.transformer.ln_f",
    head="model.transformer.ff_out",
    layer="model.transformer.blocks.{}.",
    products={
        "qkv": ("q_proj", "k_proj", "v_proj"),
        "output": ("attn_out",),
        "gate_up": ("ff_proj", "up_proj"),
        "down": ("ff_out",),
    },
    norms={"attention_norm": "attn_norm", "ffn_norm": "ff_norm"},
)
_QWEN2 = {"qkv_bias": True, "output_bias": False}
_QWEN3 = {"qk_norm": True}
_LLADA_MOE_NAMES = TensorNames(
    experts=ExpertNames(
        shared_gate_up=("shared_expert.gate_proj", "shared_expert.up_proj"),
        shared_down=("shared_expert.down_proj",),
    )
)
_LLADA2_NAMES = TensorNames(
    embedding="model.word_embeddings",
    products={**LLAMA_PRODUCTS, "qkv": ("attention.query_key_value",), "output": ("attention.dense",)},
    norms={**LLAMA_NORMS, "q_norm": "attention.query_layernorm", "k_norm": "attention.key_layernorm"},
)
_LLADA2_KEYS = {
    **HUGGING_FACE,
    "qkv_bias": "use_qkv_bias",
    "output_bias": "use_bias",
}
_SMOLDLM_KEYS = {
    "num_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_heads": "n_head",
    "num_kv_heads": "n_kv_head",
    "ffn_size": "mlp_hidden",
    "vocab_size": "vocab_size",
    "context_length": "seq_len",
    "block_grid": "block_size",
    "mask_token_id": "mask_token_id",
    "eos_token_ids": "eos_token_id",
}
_SMOLDLM_NAMES = TensorNames(
    embedding="token_emb",
    norm="final_norm",
    layer="blocks.{}.",
    products={
        **LLAMA_PRODUCTS,
        "qkv": ("attn.c_q", "attn.c_k", "attn.c_v"),
        "output": ("attn.c_proj",),
        "gate": ("attn.w_gate",),
    },
    norms={
        "attention_norm": "attn_norm",
        "ffn_norm": "mlp_norm",
        "q_norm": "attn.q_norm",
        "k_norm": "attn.k_norm",
    },
    model_norms={"embedding_norm": "emb_norm"},
)
_LLADA2 = Traits("block", False, 156895, (156892,), block_grid=32)

FAMILIES: list[Family] = [
    # Diffusion models published under the type of what they were converted from.
    Family(
        "stable-diffcoder",
        ("llama",),
        marks=("stablediffcoder",),
        traits=Traits("block", False, 5, (2,), block_grid=4),
    ),
    Family(
        "open-dcoder",
        ("qwen2",),
        marks=("opendcoder", "opendllm"),
        fixed=_QWEN2,
        traits=Traits("full", True, 151665, (151643,)),
        presets=DREAM,
    ),
    Family(
        "i-dlm",
        ("qwen3", "sdar"),
        marks=("idlm",),
        fixed=_QWEN3,
        traits=Traits("causal", True, 151669, (151645, 151643), canvas="causal"),
        presets=STRIDED,
    ),
    # Autoregressive; a denoiser beside them makes them diffusion models.
    Family("llama", ("llama",), gguf=GGUFKind("llama", interleaved=True)),
    Family("qwen2", ("qwen2",), fixed=_QWEN2, gguf=GGUFKind("qwen2")),
    Family("qwen3", ("qwen3",), fixed=_QWEN3, gguf=GGUFKind("qwen3")),
    Family("qwen3-moe", ("qwen3_moe",), fixed=_QWEN3, layers=qwen3_moe_layers),
    Family("olmoe", ("olmoe",), fixed={"qk_norm": True, "joint_qk_norm": True}, layers=olmoe_layers),
    Family("smollm3", ("smollm3",), layers=position_free_layers),
    # Diffusion models as they are published. Those of A2D by block diffusion say so in their name only.
    Family(
        "a2d-qwen2-block",
        ("a2d-qwen2",),
        marks=("bd3lm",),
        fixed=_QWEN2,
        traits=Traits("block", False, 151665, (151645, 151643), block_grid=32),
    ),
    Family(
        "a2d-qwen2",
        ("a2d-qwen2",),
        fixed=_QWEN2,
        traits=Traits("full", False, 151665, (151645, 151643)),
    ),
    Family(
        "a2d-qwen3-block",
        ("a2d-qwen3",),
        marks=("bd3lm",),
        fixed=_QWEN3,
        traits=Traits("block", False, 151669, (151645, 151643), block_grid=32),
    ),
    Family(
        "a2d-qwen3",
        ("a2d-qwen3",),
        fixed=_QWEN3,
        traits=Traits("full", False, 151669, (151645, 151643)),
    ),
    Family(
        "sdar-moe",
        ("sdar_moe",),
        keys={**HUGGING_FACE, "block_grid": "block_size"},
        fixed=_QWEN3,
        layers=qwen3_moe_layers,
        traits=Traits("block", False, 151669, (151645, 151643), block_grid=4),
        presets=SDAR,
    ),
    Family(
        "sdar",
        ("sdar",),
        keys={**HUGGING_FACE, "block_grid": "block_size"},
        fixed=_QWEN3,
        traits=Traits("block", False, 151669, (151645, 151643), block_grid=4),
        presets=SDAR,
    ),
    Family(
        "fast-dllm-v2",
        ("Fast_dLLM_Qwen",),
        keys={**HUGGING_FACE, "block_grid": "bd_size"},
        fixed=_QWEN2,
        traits=Traits("block", True, 151665, (151645,), block_grid=32),
        presets=FAST_DLLM_V2,
    ),
    Family(
        "dream-reasoner",
        ("Dream", "dream_reasoner"),
        marks=("dreamreasoner",),
        fixed=_QWEN3,
        traits=Traits("block", False, 151669, (151645, 151643), block_grid=32),
    ),
    Family(
        "dreamon",
        ("Dream",),
        marks=("dreamon",),
        fixed=_QWEN2,
        traits=Traits("full", True, 151666, (151643,), expand_token_id=151667),
        presets=DREAMON,
    ),
    Family(
        "dream",
        ("Dream",),
        fixed=_QWEN2,
        traits=Traits("full", True, 151666, (151643,)),
        presets=DREAM,
    ),
    Family(
        "rnd1",
        ("rnd1",),
        fixed=_QWEN3,
        layers=qwen3_moe_layers,
        traits=Traits("full", True, 151669, (151645, 151643)),
        presets=DREAM,
    ),
    Family(
        "llada",
        ("llada",),
        where={"block_type": "llama"},  # LLaDA-MoE has the type as well
        keys=_LLADA_KEYS,
        names=_LLADA_NAMES,
        traits=Traits("full", False, 126336, (126081, 126348)),
        presets=LLADA,
    ),
    Family(
        "llada-moe",
        ("lladamoe", "llada"),
        marks=("lladamoe",),
        keys={**HUGGING_FACE, "ffn_size": "dense_intermediate_size", "qk_norm": "qk_layernorm"},
        names=_LLADA_MOE_NAMES,
        layers=llada_moe_layers,
        traits=Traits("full", False, 156895, (156892,)),
        presets=LLADA,
    ),
    Family(
        "llada2.2",
        ("llada2_moe", "llada22_moe"),
        marks=("llada22",),
        keys=_LLADA2_KEYS,
        fixed=_QWEN3,
        names=_LLADA2_NAMES,
        layers=llada2_layers,
        traits=replace(_LLADA2, delete_token_id=156930, split_token_id=156931),
        presets=LLADA22,
    ),
    Family(
        "llada2.1",
        ("llada2_moe", "llada21_moe"),
        marks=("llada21",),
        keys=_LLADA2_KEYS,
        fixed=_QWEN3,
        names=_LLADA2_NAMES,
        layers=llada2_layers,
        traits=_LLADA2,
        presets=LLADA21,
    ),
    Family(
        "llada2",
        ("llada2_moe", "llada21_moe", "llada2_moe_veomni"),
        keys=_LLADA2_KEYS,
        fixed=_QWEN3,
        names=_LLADA2_NAMES,
        layers=llada2_layers,
        traits=_LLADA2,
        presets=LLADA2,
    ),
    Family(
        "wedlm",
        ("wedlm",),
        keys={**HUGGING_FACE, "qk_norm": "qk_norm"},
        fixed={"output_bias": False},
        traits=Traits("causal", False, 151665, (151645, 151643), canvas="causal"),
        presets=REORDERING,
    ),
    Family(
        "smoldlm",
        ("smoldlm",),
        keys=_SMOLDLM_KEYS,
        fixed={
            "qk_norm": True,
            "late_qk_norm": True,
            "rope_backwards": True,
            "attention_gate": True,
            "embedding_norm": True,
            "tied_embeddings": True,
            "norm_eps": 1e-5,
        },
        names=_SMOLDLM_NAMES,
        traits=Traits("block", False, 0, (1,), block_grid=32),
    ),
    DHARA,
    DIFFUSION_GEMMA,
    NEMOTRON,
    BD3LM,
    MDLM,
]
"""The first row that describes a checkpoint is its family."""


def family_of(config: Config, name: str) -> Family:
    """The row for a config.json; raises ModelFileError for a type that no row has."""
    for family in FAMILIES:
        if family.describes(config, name):
            return family
    kin = next((family for family in FAMILIES if config.get("model_type") in family.model_types), None)
    if kin is not None:
        told = {key: config.get(key) for key in kin.where}
        raise ModelFileError(f"{name}: of {kin.name} {dict(kin.where)} is read; config.json has {told}.")
    known = sorted({model_type for family in FAMILIES for model_type in family.model_types})
    raise ModelFileError(
        f"{name}: model_type {config.get('model_type')!r} is not read; these are: {', '.join(known)}."
    )


def family_of_gguf(architecture: object, name: str) -> Family:
    """The row for a GGUF's `general.architecture`; raises ModelFileError for one that no row has."""
    for family in FAMILIES:
        if family.gguf and family.gguf.architecture == architecture:
            return family
    known = ", ".join(repr(family.gguf.architecture) for family in FAMILIES if family.gguf)
    raise ModelFileError(f"{name}: architecture {architecture!r}; these are read from a GGUF: {known}.")
