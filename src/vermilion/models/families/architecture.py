"""The shape of a backbone: sizes, kinds of layers, rotary embedding. Plain data, read from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How angles are stretched for contexts longer than the first training's (YaRN: arXiv 2309.00071)."""

    kind: str
    """As config.json calls it: yarn, llama3, linear, ..."""
    parameters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts as the feed-forward of a layer (arXiv 2101.03961)."""

    num_experts: int
    num_active: int
    ffn_size: int
    shared_size: int = 0
    """Width of the expert that every row goes through; 0 without one."""
    router: Literal["softmax", "sigmoid"] = "softmax"
    router_bias: bool = False
    """A bias that chooses experts and does not weigh them (LLaDA2)."""
    normalized: bool = True
    """Whether the weights of the chosen experts sum to `scale`."""
    scale: float = 1.0
    num_groups: int = 1
    num_active_groups: int = 1


@dataclass(frozen=True, slots=True)
class LayerKind:
    """Where a layer departs from the architecture's own sizes; 0 and None keep those."""

    window: int = 0
    """Keys that a row sees to its left, its own included; 0: all."""
    head_dim: int = 0
    num_kv_heads: int = 0
    rope_theta: float = 0.0
    values_are_keys: bool = False
    """No projection of values: keys before their norm and rotation stand in for them (DiffusionGemma)."""
    experts: Experts | None = None
    dense: bool = True
    """Whether there is a dense feed-forward; with experts, beside them."""


PLAIN_LAYER = LayerKind()


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder-only transformer with RMSNorm, RoPE, grouped-query attention and a gated feed-forward."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    context_length: int
    rope_theta: float = 10_000.0
    rope_fraction: float = 1.0
    """Leading share of each head that is rotated (LLaDA2: 0.5)."""
    norm_eps: float = 1e-5
    qk_norm: bool = False
    """RMSNorm over each query and key head before RoPE (Qwen3, SDAR)."""
    qkv_bias: bool = False
    """Biases on the q, k and v projections (Qwen2, Dream)."""
    tied_embeddings: bool = True
    output_bias: bool = False
    ffn_bias: bool = False
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    """Of the feed-forward's gate: `silu` makes it a SwiGLU, the others a GeGLU (arXiv 2002.05202)."""
    rope_scaling: RopeScaling | None = None
    attention_scale: float = 0.0
    """What scores are multiplied by; 0: 1 / sqrt(head_dim)."""
    embedding_scale: float = 1.0
    logit_softcap: float = 0.0
    """c of c tanh(logits / c); 0: none (Gemma)."""
    self_conditioning: bool = False
    """Noisy rows take in what the model said of their positions in the step before (arXiv 2208.04202)."""
    layers: tuple[LayerKind, ...] = ()
    """One per layer; empty where all are plain."""

    def beyond_backbone(self) -> Iterator[str]:
        """What a checkpoint of this shape needs that the backbone does not compute, in words."""
        plain = {
            "biases of the attention's output": not self.output_bias,
            "biases of the feed-forward": not self.ffn_bias,
            f"activation {self.activation}": self.activation == "silu",
            "scaled RoPE": self.rope_scaling is None,
            "an attention scale of its own": self.attention_scale == 0,
            "scaled embeddings": self.embedding_scale == 1,
            "capped logits": self.logit_softcap == 0,
            "sliding windows": not any(layer.window for layer in self.layers),
            "experts": not any(layer.experts for layer in self.layers),
            "layers of different sizes": not any(
                layer.head_dim or layer.num_kv_heads or layer.rope_theta or layer.values_are_keys
                for layer in self.layers
            ),
        }
        yield from (need for need, met in plain.items() if not met)
