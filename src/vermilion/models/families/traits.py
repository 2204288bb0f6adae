"""How a checkpoint denoises."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Context = Literal["causal", "block", "full"]

NO_MASK_ID = -1
"""Mask id of an autoregressive model without a denoiser: no token has it, only `ar` can run."""


@dataclass(frozen=True, slots=True)
class Traits:
    """How a checkpoint denoises.

    context  what committed text sees: `causal` (a frozen AR model; its commit rows give next-token
             probabilities), `block` (block-causal: all of the own block and every earlier one), `full`
             (everything, masks of the future included; nothing can be cached).
    shift    row i predicts token i + 1 (converted AR models); otherwise a mask predicts itself.
    block_grid  block edges lie at multiples of it, counted from position 0; 0: a canvas starts anywhere.
    gated    noisy rows run base + adapter, clean rows the base alone.
    noise    what stands at a position that is not settled: the mask token, or a token drawn uniformly from
             the vocabulary (DiffusionGemma).
    canvas   what its positions see of each other: `bidirectional` all of them, `causal` the settled ones
             before them and the masks to their left (WeDLM, I-DLM).
    next_token  clean rows of a causal context predict the next token though masks predict themselves
             (Nemotron-Labs-Diffusion, which has a head for each).
    canvas_context  what settled text sees under the decoders of canvases, where that is not what it sees
             under the autoregressive ones (Dhara, which was trained as both); empty: the same.
    drafter  tokens that a shallow drafter beside the model guesses at a time (`models/drafter.py`); 0: none.
    delete_token_id, split_token_id, expand_token_id  tokens that change how many positions there are: it
             is taken out; a mask comes before it (both LLaDA2.2); it becomes two masks (DreamOn). -1: none.
    """

    context: Context
    shift: bool
    mask_token_id: int
    eos_token_ids: tuple[int, ...]
    block_grid: int = 0
    gated: bool = False
    noise: Literal["mask", "uniform"] = "mask"
    canvas: Literal["bidirectional", "causal"] = "bidirectional"
    next_token: bool = False
    canvas_context: Context | Literal[""] = ""
    delete_token_id: int = -1
    split_token_id: int = -1
    expand_token_id: int = -1
    drafter: int = 0
    cached_as: str = ""
    """Told apart from other keys and values of the same text; `for_canvases` sets it."""

    @property
    def denoises(self) -> bool:
        """Whether it can say what stands at a position that is not settled."""
        return self.noise != "mask" or self.mask_token_id != NO_MASK_ID

    @property
    def unread_masks(self) -> int:
        """Masks that a canvas behind a known token needs before the first that says what stands behind it."""
        return 0 if self.shift else 1

    def for_canvases(self) -> Traits:
        """As the decoders of canvases ask it."""
        if not self.canvas_context:
            return self
        context = self.canvas_context
        return replace(self, context=context, canvas_context="", next_token=False, cached_as=context)

    @property
    def has_next_token(self) -> bool:
        """Whether clean rows are an AR model, so that `ar`, `lossless` and revision are possible."""
        return self.context == "causal" and (self.shift or self.next_token)


AUTOREGRESSIVE = Traits("causal", True, NO_MASK_ID, ())
"""A model that no denoiser was trained for."""
