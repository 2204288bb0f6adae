"""What a drafter is asked for, and what its guesses cost.

Shapes: L positions of a text, T taps, H hidden, A anchors, K rows of a block, R = A x K rows, W draft
vocabulary, C candidates of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vermilion.models.drafter import Drafter
from vermilion.models.linear import Linear
from vermilion.models.rotary import Rotary
from vermilion.models.transformer import Transformer


@dataclass(frozen=True, slots=True)
class DrafterLoss:
    """Weights of a row's loss

    (1 - following) CE(guess)
      + following [(1 - total_variation) CE + total_variation TV](guess | token before)

    The second part is over the row's likeliest `candidates`, the base's and the token itself, as the head
    weighs them in serving. TV is half the L1 distance to the base's distribution: a draft is refused with
    that probability (arXiv 2609.04010).
    """

    following: float = 0.6
    total_variation: float = 0.9
    candidates: int = 16
    offset_decay: float = 4.0
    """Row k weighs exp(-k / this): drafts are used from the left."""


@dataclass(frozen=True, slots=True)
class OwnText:
    """One text of the base's own, and what the base thought at each of its positions."""

    ids_L: Tensor
    tapped_LTH: Tensor
    last_LH: Tensor
    """After the base's last norm: its head gives the next token's logits."""
    num_prompt: int


@dataclass(frozen=True, slots=True)
class Frozen:
    """What drafter and base share."""

    embedding: Linear
    head_WH: Tensor
    """The head's rows of the draft vocabulary."""
    rotary: Rotary
    inverse_V: Tensor
    """Token id to its place in the draft vocabulary; -1 outside it."""

    @classmethod
    def of(cls, model: Transformer, vocabulary_W: Tensor) -> Frozen:
        inverse_V = torch.full((model.architecture.vocab_size,), -1)
        inverse_V[vocabulary_W] = torch.arange(len(vocabulary_W))
        return cls(model.embedding, model.output.rows(vocabulary_W), model.rotary, inverse_V)


@dataclass(frozen=True, slots=True)
class Guesses:
    """A text's rows, as scored."""

    loss: Tensor
    accepted_AK: Tensor
    """bool: the likeliest token behind the true one before it is the base's likeliest."""
    weight: float


def anchors_of(text: OwnText, every: int, length: int, generator: torch.Generator) -> Tensor:
    """Positions of settled tokens to draft behind, [A], one in each run of `every`."""
    first, last = max(1, text.num_prompt - 1), len(text.ids_L) - 1 - length
    starts = torch.arange(first, last + 1, every)
    if not len(starts):
        return starts
    return (starts + torch.randint(0, every, (len(starts),), generator=generator)).clamp(max=last)


def guess(drafter: Drafter, frozen: Frozen, text: OwnText, anchors_A: Tensor, config: DrafterLoss) -> Guesses:
    """The loss of the blocks behind these anchors, summed over rows by weight."""
    length = drafter.shape.block_length
    position_AK = anchors_A[:, None] + torch.arange(length)
    hidden_RH = block_states(drafter, frozen, text, anchors_A, position_AK)
    label_R = text.ids_L[(position_AK + 1).flatten()]
    before_R = text.ids_L[position_AK.flatten()]
    place_R = frozen.inverse_V[label_R]
    weight_R = torch.exp(-torch.arange(length) / config.offset_decay).repeat(len(anchors_A))
    known_R = place_R >= 0
    logits_RW = F.linear(hidden_RH, frozen.head_WH).float()
    teacher_RW = F.linear(text.last_LH[position_AK.flatten()].to(hidden_RH.dtype), frozen.head_WH).float()
    plain_R = F.cross_entropy(logits_RW, place_R.clamp(min=0), reduction="none") * known_R
    with torch.no_grad():
        picked = [logits_RW.topk(config.candidates).indices, teacher_RW.topk(4).indices]
        candidate_RC = torch.cat([*picked, place_R.clamp(min=0)[:, None]], -1)
        # A token that is named twice counts once.
        repeated_RC = (candidate_RC[:, :, None] == candidate_RC[:, None, :]).tril(-1).any(-1)
        teacher_RC = teacher_RW.softmax(-1).gather(-1, candidate_RC).masked_fill(repeated_RC, 0.0)
        best_R = teacher_RW.argmax(-1)
    added_RH = drafter.head(hidden_RH, frozen.embedding.rows(before_R).to(hidden_RH.dtype))
    moved_RC = torch.einsum("rh,rch->rc", added_RH, frozen.head_WH[candidate_RC]).float()
    logit_RC = (logits_RW.gather(-1, candidate_RC) + moved_RC).masked_fill(repeated_RC, float("-inf"))
    logprob_RC = logit_RC.log_softmax(-1)
    at_R = (candidate_RC == place_R.clamp(min=0)[:, None]).float().argmax(-1)
    follow_R = -logprob_RC.gather(-1, at_R[:, None])[:, 0] * known_R
    share_RC = logprob_RC.exp()
    variation_R = 0.5 * (share_RC - teacher_RC).abs().sum(-1)
    behind_R = (1 - config.total_variation) * follow_R + config.total_variation * variation_R
    loss = (weight_R * ((1 - config.following) * plain_R + config.following * behind_R)).sum()
    with torch.no_grad():
        inside_RC = torch.arange(candidate_RC.shape[-1]) < config.candidates
        chosen_R = candidate_RC.gather(-1, logit_RC.masked_fill(~inside_RC, -torch.inf).argmax(-1, True))[
            :, 0
        ]
        accepted_AK = ((chosen_R == best_R) & known_R).view(position_AK.shape)
    return Guesses(loss, accepted_AK, float(weight_R.sum()))


def block_states(
    drafter: Drafter, frozen: Frozen, text: OwnText, anchors_A: Tensor, position_AK: Tensor
) -> Tensor:
    """The hidden states [R, H], after the drafter's last norm, of the blocks behind these anchors."""
    num, length = position_AK.shape
    x_AKH = drafter.mask_embedding.expand(num, length, -1).clone()
    x_AKH[:, 0] = frozen.embedding.rows(text.ids_L[anchors_A])
    x_RH = x_AKH.flatten(0, 1)
    positions_R = position_AK.flatten()
    context_LH = drafter.context(text.tapped_LTH.to(drafter.norm.weight.dtype))
    own = drafter.shape.num_layers
    where_L = torch.arange(len(context_LH))
    keys = drafter.keys_values(context_LH, frozen.rotary.at(where_L, x_RH.dtype)[-own:])
    # A row sees what is settled before its anchor, and all rows of its block.
    seen_RL = where_L < anchors_A.repeat_interleave(length)[:, None]
    block_R = torch.arange(num).repeat_interleave(length)
    visible = torch.cat([seen_RL, block_R[:, None] == block_R], -1)
    turns = frozen.rotary.at(positions_R, x_RH.dtype)[-own:]
    for layer, turn, (k, v) in zip(drafter.layers, turns, keys, strict=True):
        x_RH, _ = layer(x_RH, (), turn, partial(_attend, visible, k, v))
    hidden_RH: Tensor = drafter.norm(x_RH)
    return hidden_RH


def _attend(visible: Tensor, k_L: Tensor, v_L: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    keys, values = torch.cat([k_L.to(k.dtype), k]), torch.cat([v_L.to(v.dtype), v])
    q, keys, values = (each.transpose(0, 1)[None] for each in (q, keys, values))
    seen: Tensor = F.scaled_dot_product_attention(q, keys, values, attn_mask=visible, enable_gqa=True)
    return seen[0].transpose(0, 1)
