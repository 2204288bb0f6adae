"""The family table: what tells one published checkpoint kind from another, as data.

`Architecture` is the shape of the one backbone, `Traits` how its denoiser wants to be asked. A new family is
a row here (and, where its tensor names differ, a row of `models/weights.py`), never a new class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of a decoder-only transformer with RMSNorm, RoPE, grouped-query attention and SwiGLU."""

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


@dataclass(frozen=True, slots=True)
class Traits:
    """How a checkpoint denoises (reference: the parity table of docs/DESIGN.md).

    context  what committed text sees: `causal` (a frozen AR model; its commit rows give next-token
             probabilities), `block` (block-causal: all of the own block and every earlier one), `full`
             (everything, masks of the future included; nothing can be cached).
    shift    row i predicts token i + 1 (converted AR models); otherwise a mask predicts itself.
    block_grid  block edges lie at multiples of it, counted from position 0; 0: a canvas starts anywhere.
    gated    noisy rows run base + adapter, clean rows the base alone.
    """

    context: Literal["causal", "block", "full"]
    shift: bool
    mask_token_id: int
    eos_token_ids: tuple[int, ...]
    block_grid: int = 0
    gated: bool = False

    @property
    def has_next_token(self) -> bool:
        """Whether clean rows are an AR model, so that `ar`, `lossless` and revision are possible."""
        return self.context == "causal" and self.shift


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table: architecture and traits of a named model kind."""

    name: str
    architecture: Architecture
    traits: Traits


SMOLLM2_135M_DIFFUSION = Family(
    name="smollm2-135m-diffusion",
    architecture=Architecture(
        num_layers=30,
        hidden_size=576,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        ffn_size=1536,
        vocab_size=49152,
        context_length=8192,
        rope_theta=100_000.0,
    ),
    traits=Traits(context="causal", shift=True, mask_token_id=16, eos_token_ids=(2,), gated=True),
)

FAMILIES: dict[str, Family] = {SMOLLM2_135M_DIFFUSION.name: SMOLLM2_135M_DIFFUSION}
