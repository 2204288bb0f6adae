"""Under which names a checkpoint keeps the tensors of the backbone: the one map from them to our modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LLAMA_PRODUCTS: Mapping[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
LLAMA_NORMS: Mapping[str, str] = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """Where a layer's experts are, behind the layer's prefix. The defaults are those of Qwen3-MoE."""

    router: str = "mlp.gate.weight"
    router_bias: str = "mlp.gate.expert_bias"
    gate_up: tuple[str, ...] = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj")
    down: tuple[str, ...] = ("mlp.experts.{}.down_proj",)
    stacked: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "mlp.experts.gate_up_proj": ("gate", "up"),
            "mlp.experts.gate_proj": ("gate",),
            "mlp.experts.up_proj": ("up",),
            "mlp.experts.down_proj": ("down",),
        }
    )
    """Tensors of a checkpoint that stacks the experts, [E, O, I], and what each holds of every expert."""
    shared_gate_up: tuple[str, ...] = ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj")
    shared_down: tuple[str, ...] = ("mlp.shared_experts.down_proj",)


@dataclass(frozen=True, slots=True)
class TensorNames:
    """Published names, without `.weight` and `.bias`. The defaults are those of Hugging Face's Llama."""

    embedding: str = "model.embed_tokens"
    norm: str = "model.norm"
    head: str = "lm_head"
    layer: str = "model.layers.{}."
    """Prefix of a layer's tensors."""
    products: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: LLAMA_PRODUCTS)
    """Per fused product of ours, the projections it is made of, in order. One name for a product of several
    parts is a tensor that the checkpoint keeps fused, parts one below the other."""
    norms: Mapping[str, str] = field(default_factory=lambda: LLAMA_NORMS)
    experts: ExpertNames = ExpertNames()
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Per parameter of a layer that is neither a product nor a norm, by its path in ours, its whole name; {}
    stands for the layer's number."""
    convolutions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Per convolution of a layer, those that the checkpoint has in its place, in the order of the layer's
    queries, keys and values where they are several."""
    model_products: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    model_norms: Mapping[str, str] = field(default_factory=dict)
    """Products and norms outside the layers, by their path in ours."""
    bare: tuple[str, ...] = ()
    """Tensors that are published without `.weight`."""
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    """Ends of the names of tensors that are computed here instead of read."""
    unread: tuple[str, ...] = ()
    """Beginnings of the names of tensors that are of no use here: towers of other senses, tied copies."""

    def in_llama(self, num_layers: int) -> dict[str, str]:
        """Every tensor's name there may be to the one in Hugging Face's Llama. For checkpoints that publish
        projections one by one."""
        pairs = [(self.embedding, LLAMA.embedding), (self.norm, LLAMA.norm), (self.head, LLAMA.head)]
        modules = [
            *((name, LLAMA.norms[ours]) for ours, name in self.norms.items()),
            *(
                pair
                for ours, names in self.products.items()
                for pair in zip(names, LLAMA.products[ours], strict=True)
            ),
        ]
        for index in range(num_layers):
            theirs, llama = self.layer.format(index), LLAMA.layer.format(index)
            pairs += [(theirs + module, llama + other) for module, other in modules]
        kinds = ("weight", "bias")
        return {f"{name}.{kind}": f"{other}.{kind}" for name, other in pairs for kind in kinds}


LLAMA = TensorNames()
GGUF = TensorNames(
    embedding="token_embd",
    norm="output_norm",
    head="output",
    layer="blk.{}.",
    products={
        "qkv": ("attn_q", "attn_k", "attn_v"),
        "output": ("attn_output",),
        "gate_up": ("ffn_gate", "ffn_up"),
        "down": ("ffn_down",),
    },
    norms={
        "attention_norm": "attn_norm",
        "ffn_norm": "ffn_norm",
        "q_norm": "attn_q_norm",
        "k_norm": "attn_k_norm",
    },
    ignored=("rope_freqs.weight",),
)
"""Names of llama.cpp, the same for every architecture that we read."""
