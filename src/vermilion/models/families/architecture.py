"""The shape of a backbone: sizes, kinds of layers, rotary embedding. Plain data, read from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from vermilion.models.families.rope import SCALINGS, Rope, RopeScaling


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
    scaled_router: bool = False
    """The router norms its rows, weighs their entries, and weighs each expert chosen (Gemma 4)."""
    num_groups: int = 1
    """Experts are chosen within the `num_active_groups` groups whose two best have the highest sum."""
    num_active_groups: int = 1
    block_capacity: int = 0
    """Most experts that the rows of a block of `block_size` positions choose among: those of the highest
    score in any of its rows (LLaDA2.2); 0: each row chooses among all."""
    block_size: int = 0


@dataclass(frozen=True, slots=True)
class LayerKind:
    """Where a layer departs from the architecture's own sizes; 0 and None keep those."""

    window: int = 0
    """Keys that a row sees to its left, its own included; 0: all."""
    head_dim: int = 0
    num_kv_heads: int = 0
    rope_theta: float = 0.0
    rope_scaling: RopeScaling | None = None
    rope_fraction: float = 0.0
    rotated: bool = True
    """False: no position enters here (SmolLM3's NoPE layers)."""
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
    rope_backwards: bool = False
    """Angles fall with the position instead of rising (SmolDLM)."""
    norm_eps: float = 1e-5
    qk_norm: bool = False
    """RMSNorm over each query and key head before RoPE (Qwen3, SDAR)."""
    late_qk_norm: bool = False
    """That norm is behind RoPE instead (SmolDLM, Dhara)."""
    joint_qk_norm: bool = False
    """That norm is over all heads of a row together (OLMoE)."""
    value_norm: bool = False
    """RMSNorm without a weight over each value head (Gemma 4)."""
    qkv_bias: bool = False
    """Biases on the q, k and v projections (Qwen2, Dream)."""
    tied_embeddings: bool = True
    output_bias: bool = False
    ffn_bias: bool = False
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    """Of the feed-forward's gate: `silu` makes it a SwiGLU, the others a GeGLU (arXiv 2002.05202)."""
    rope_scaling: RopeScaling | None = None
    attention_gate: bool = False
    """What a head has seen is multiplied by the sigmoid of a projection of the layer's input (arXiv
    2505.06708)."""
    canon_kernel: int = 0
    """Positions that the convolutions of a Canon layer take in, the row's own included (SSRN 5240330); 0:
    there are none."""
    attention_scale: float = 0.0
    """What scores are multiplied by; 0: 1 / sqrt(head_dim)."""
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    """RMSNorm over embeddings, the mask's included."""
    logit_softcap: float = 0.0
    """c of c tanh(logits / c); 0: none (Gemma)."""
    query_growth: float = 0.0
    query_period: int = 0
    """Queries at position p are multiplied by 1 + growth x ln(1 + floor(p / period)) (Llama 4, Ministral)."""
    sandwich_norms: bool = False
    """Norms behind attention and feed-forward as well, one for each of a dense one and its experts, and a
    factor on what leaves the layer, another one for noisy rows (DiffusionGemma)."""
    condition_size: int = 0
    """Width of the condition that modulates every norm of a diffusion transformer (MDLM); 0: none."""
    head_bias: bool = False
    self_conditioning: bool = False
    """Noisy rows take in what the model said of their positions in the step before (arXiv 2208.04202)."""
    layers: tuple[LayerKind, ...] = ()
    """One per layer; empty where all are plain."""

    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """Every layer's kind, the sizes that it keeps filled in."""
        return tuple(
            replace(
                kind,
                head_dim=kind.head_dim or self.head_dim,
                num_kv_heads=kind.num_kv_heads or self.num_kv_heads,
                rope_theta=kind.rope_theta or self.rope_theta,
                rope_scaling=kind.rope_scaling or self.rope_scaling,
                rope_fraction=kind.rope_fraction or self.rope_fraction,
            )
            for kind in self.layers or (PLAIN_LAYER,) * self.num_layers
        )

    def convolutions(self) -> dict[str, int]:
        """How many channels each convolution of a layer has; none without them."""
        if not self.canon_kernel:
            return {}
        heads = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        return {
            "canon_a": self.hidden_size,
            "canon_b": heads,
            "canon_c": self.hidden_size,
            "canon_d": self.ffn_size,
        }

    def rope(self, kind: LayerKind) -> Rope:
        """The rotary embedding of a layer whose sizes are filled in."""
        scaling, length = kind.rope_scaling, self.context_length
        return Rope(kind.head_dim, kind.rope_theta, kind.rope_fraction, scaling, length, self.rope_backwards)

    def beyond_backbone(self) -> Iterator[str]:
        """What a checkpoint of this shape needs that the backbone does not compute, in words."""
        if self.activation not in ("silu", "gelu", "gelu_tanh"):
            yield f"activation {self.activation}"
        for kind in {kind.rope_scaling.kind for kind in self.layer_kinds() if kind.rope_scaling}:
            if kind not in SCALINGS:
                yield f"RoPE scaling {kind}"
