"""Under which names a checkpoint keeps the tensors of the backbone: the one map from them to our modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    """Ends of the names of tensors that are computed here instead of read."""

    def of_layer(self, index: int) -> Iterator[tuple[str, str, int | None]]:
        """(published module, our product or norm, part) of a layer; part None where the tensor has all parts
        of its product, or is a norm."""
        prefix = self.layer.format(index)
        for product, modules in self.products.items():
            for part, module in enumerate(modules):
                yield prefix + module, product, part if len(modules) > 1 else None
        for norm, module in self.norms.items():
            yield prefix + module, norm, None


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
